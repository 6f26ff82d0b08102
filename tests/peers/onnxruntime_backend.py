"""An `onnxruntime` backend for a Triton that ships without the C++ one: a Python-based backend of that name.

Copied to `<backend directory>/onnxruntime/model.py` by `triton_server.py`; it runs inside Triton's python backend, so
it may import nothing of ours.
"""

import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        file = config.get("default_model_filename") or "model.onnx"
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / file
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.batching = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list) -> list:
        """Whatever Triton's batcher put together is one run: it batches equal shapes only."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if len(feeds) > 1 and self.batching:
            rows = [len(feed[self.inputs[0]]) for feed in feeds]
            whole = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
            ends = np.cumsum(rows)[:-1]
            parts = [np.split(output, ends) for output in self.session.run(self.outputs, whole)]
            answers = list(zip(*parts, strict=True))
        else:
            answers = [self.session.run(self.outputs, feed) for feed in feeds]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(self.outputs, arrays, strict=True)])
            for arrays in answers
        ]
