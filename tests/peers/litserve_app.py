"""A LitServe server over the ONNX files that it is told of. It runs in LitServe's environment: nothing of ours here.

python litserve_app.py PORT WORKERS '{"name": "file", …}'
"""

import base64
import json
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import litserve
import numpy as np
import onnxruntime as ort


class Model(litserve.LitAPI):
    def __init__(self, name: str, file: str) -> None:
        super().__init__(api_path=f"/{name}")
        self.file = file

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        # no annotation: LitServe would take it for a schema
        return {
            name: np.frombuffer(base64.b64decode(one["data"]), one["dtype"]).reshape([1, *one["shape"]])
            for name, one in request.items()
        }

    def predict(self, x: dict) -> np.ndarray:
        return self.session.run(None, x)[0][0]

    def encode_response(self, output: np.ndarray) -> dict:
        return {"data": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    port, workers, models = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    apis = [Model(name, file) for name, file in models.items()]
    server = litserve.LitServer(apis, accelerator="cpu", devices=1, workers_per_device=workers, timeout=False)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")
