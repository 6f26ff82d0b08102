"""The same small models for every backend: double (y = 2x), echo of each datatype, one without batch dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from protos.datatypes import BY_NAME, Datatype
from protos.model_config import ModelConfig
from server.backends import get
from server.backends.base import Device, LoadRequest, Session


def save(path: Path, nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto],
         outputs: Sequence[onnx.ValueInfoProto], initializers: Sequence[onnx.TensorProto] = ()) -> Path:  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def value(name: str, shape: Sequence[int | str] | None, code: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, shape)


CPU = Device()


@dataclass(frozen=True)
class Maker:
    """How to make the models for one backend."""

    backend: str
    options: tuple[tuple[str, str], ...] = ()
    device: Device = CPU

    def load(self, path: Path, instances: int = 1) -> Session:
        request = LoadRequest(path, ModelConfig("m"), (self.device,) * instances, dict(self.options))
        return get(self.backend).load(request)

    def double(self, folder: Path) -> Path:
        if self.backend == "fake":
            return _fake(folder, BY_NAME["FP32"], [-1, 4], "multiply = 2")
        two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
        node = helper.make_node("Mul", ["x", "two"], ["y"])
        return save(folder / "model.onnx", [node], [value("x", ["n", 4])], [value("y", ["n", 4])], [two])

    def echo(self, folder: Path, datatype: Datatype) -> Path:
        if self.backend == "fake":
            return _fake(folder, datatype, [-1, 3])
        code = datatype.onnx_code
        node = helper.make_node("Identity", ["x"], ["y"])
        return save(folder / "model.onnx", [node], [value("x", ["n", 3], code)], [value("y", ["n", 3], code)])

    def scalar(self, folder: Path) -> Path:
        if self.backend == "fake":
            return _fake(folder, BY_NAME["FP32"], [])
        node = helper.make_node("Identity", ["x"], ["y"])
        return save(folder / "model.onnx", [node], [value("x", [])], [value("y", [])])

    def broken(self, folder: Path) -> Path:
        path = folder / ("model.fake" if self.backend == "fake" else "model.onnx")
        path.write_bytes(b"\xff\xfe this is no model")
        return path


def _fake(folder: Path, datatype: Datatype, shape: list[int], behaviour: str = "") -> Path:
    tensor = f'datatype = "{datatype.name}"\nshape = {shape}\n'
    path = folder / "model.fake"
    path.write_text(f'[[input]]\nname = "x"\n{tensor}[[output]]\nname = "y"\n{tensor}[behaviour]\n{behaviour}\n')
    return path


MAKERS = (Maker("fake"), Maker("onnxruntime", (("preflight", "off"),)))
GPU_MAKERS = (Maker("onnxruntime", (("preflight", "off"),), Device("cuda")),)
Make = Callable[[Path], Path]
