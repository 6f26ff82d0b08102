"""A Ray Serve application over the ONNX files that it is told of. It runs in Ray's environment: nothing of ours here.

python ray_app.py PORT '{"name": {"file": …, "replicas": …}, …}'
"""

import base64
import json
import os
import sys
import threading

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Model:
    def __init__(self, file: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    async def __call__(self, request: Request) -> dict:
        feed = {
            name: np.frombuffer(base64.b64decode(one["data"]), one["dtype"]).reshape([1, *one["shape"]])
            for name, one in json.loads(await request.body()).items()
        }
        return {"data": base64.b64encode(self.session.run(None, feed)[0].tobytes()).decode()}


if __name__ == "__main__":
    port, models = int(sys.argv[1]), json.loads(sys.argv[2])
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    for name, one in models.items():
        deployment = Model.options(num_replicas=one["replicas"]).bind(one["file"])
        serve.run(deployment, name=name, route_prefix=f"/{name}")
    print("ready", flush=True)
    threading.Event().wait()
