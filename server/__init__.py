"""Entries in, answers out: the inference server."""

import os

# onnxruntime 1.31's wheels send telemetry unless told otherwise before their first import
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
