"""An `onnxruntime` backend for a Triton that ships without the C++ one: a Python-based backend of that name.

Copied to `<backend directory>/onnxruntime/model.py` by `triton.py`; it runs inside Triton's python backend, so it may
import nothing of ours.
"""

import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

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
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list) -> list:
        answers = []
        for request in requests:
            feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            outputs = zip(self.outputs, self.session.run(self.outputs, feed), strict=True)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs]))
        return answers
