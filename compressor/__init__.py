"""Offline: a trained model in, a smaller and faster repository entry out."""

import os

# The wheels of onnxruntime 1.31 send usage data unless told otherwise before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
