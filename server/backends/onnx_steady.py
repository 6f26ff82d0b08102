"""Whether the time of an ONNX model depends on the shapes of its inputs alone, read from the file's bytes.

It does not where values decide what is computed or how large it gets: control flow, operators whose outputs are as
long as values say (NonZero), and shapes computed from values (`Range` up to a number that a client sends). Shapes
computed from shapes, of which transformers are full, are fine. So values are followed from the graph's inputs through
its nodes, `Shape` and `Size` end the trail, and no operand that is a shape may be on it. Operators that are not known
here are taken for steady: the pace would notice (`batching/pace.py`).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.backends.onnx_file import Bytes, fields

# numbers of onnx.proto3
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_TENSOR_NAME, _VALUE_NAME = 8, 1

_ENDS = frozenset({b"Shape", b"Size"})
_BY_VALUE = frozenset({
    b"NonZero", b"Unique", b"Compress", b"NonMaxSuppression", b"RemovePadding", b"RestorePadding", b"Tokenizer",
    b"GroupQueryAttention", b"DecoderMaskedMultiHeadAttention", b"DecoderMaskedSelfAttention",
})  # fmt: skip
"""Operators whose work is decided by the values of any operand."""
_SHAPES: Mapping[bytes, tuple[int, ...]] = {
    b"Reshape": (1,), b"Expand": (1,), b"Tile": (1,), b"Range": (0, 1, 2), b"ConstantOfShape": (0,),
    b"Resize": (2, 3), b"Upsample": (1,), b"OneHot": (1,), b"TopK": (1,), b"Slice": (1, 2, 3, 4), b"Split": (1,),
    b"Pad": (1, 3), b"CenterCropPad": (1,), b"AffineGrid": (1,), b"Col2Im": (1, 2), b"MaxUnpool": (2,), b"DFT": (1, 2),
    b"STFT": (1, 3), b"HannWindow": (0,), b"HammingWindow": (0,), b"BlackmanWindow": (0,),
    b"MelWeightMatrix": (0, 1, 2, 3, 4), b"CropAndResize": (3,), b"Squeeze": (1,), b"Unsqueeze": (1,),
}  # fmt: skip
"""Operands whose values say how large the output is."""


@dataclass(slots=True)
class _Node:
    op: bytes = b""
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    has_graph: bool = False


def is_steady(path: Path) -> bool:
    """For a file that `onnx_file.check` has let through. Raises BackendError where it is no ONNX after all."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return steady(data, path.name)


def steady(data: Bytes, name: str) -> bool:
    graph: tuple[int, int] | None = None
    for number, start, stop in fields(data, 0, len(data), name):
        if number == _MODEL_FUNCTION:  # operators of the model's own: nothing is known of their operands
            return False
        if number == _MODEL_GRAPH:
            if graph is not None:  # protobuf would merge the two
                return False
            graph = start, stop
    return graph is not None and _graph(data, *graph, name)


def _graph(data: Bytes, begin: int, end: int, name: str) -> bool:
    nodes: list[_Node] = []
    inputs: set[bytes] = set()
    constants: set[bytes] = set()
    for number, start, stop in fields(data, begin, end, name):
        if number == _GRAPH_NODE:
            nodes.append(_node(data, start, stop, name))
        elif number == _GRAPH_INPUT:
            inputs.add(_name(data, start, stop, _VALUE_NAME, name))
        elif number == _GRAPH_INITIALIZER:
            constants.add(_name(data, start, stop, _TENSOR_NAME, name))
    values = inputs - constants  # old files list their weights among the inputs
    for node in nodes:  # in an order in which every operand comes before its use, as ONNX demands
        if node.has_graph:
            return False
        if values.isdisjoint(node.inputs):
            continue
        shapes = _SHAPES.get(node.op, ())
        if node.op in _BY_VALUE or any(operand in values for i, operand in enumerate(node.inputs) if i in shapes):
            return False
        if node.op not in _ENDS:
            values.update(filter(None, node.outputs))  # an output that is left out has no name
    return True


def _node(data: Bytes, start: int, stop: int, name: str) -> _Node:
    node = _Node()
    for number, begin, end in fields(data, start, stop, name):
        if number == _NODE_INPUT:
            node.inputs.append(data[begin:end])
        elif number == _NODE_OUTPUT:
            node.outputs.append(data[begin:end])
        elif number == _NODE_OP:
            node.op = data[begin:end]
        elif number == _NODE_ATTRIBUTE:
            inside = fields(data, begin, end, name)
            node.has_graph |= any(part in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) for part, _, _ in inside)
    return node


def _name(data: Bytes, start: int, stop: int, number: int, name: str) -> bytes:
    return next((data[begin:end] for found, begin, end in fields(data, start, stop, name) if found == number), b"")
