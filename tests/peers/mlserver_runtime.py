"""A runtime for MLServer that answers with onnxruntime. It runs in MLServer's environment: nothing of ours here."""

import asyncio
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self.in_thread = extra["in_thread"]
        self.output_names = [output.name for output in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        if self.in_thread:
            arrays = await asyncio.get_running_loop().run_in_executor(None, self.session.run, self.output_names, feed)
        else:
            arrays = self.session.run(self.output_names, feed)
        outputs = [
            NumpyCodec.encode_output(name, np.asarray(a)) for name, a in zip(self.output_names, arrays, strict=True)
        ]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
