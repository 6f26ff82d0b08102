"""ONNX files in and out: the only place where the passes parse or write one, and prove a foreign file harmless.

A file is parsed without its external data first; every tensor of it (graph, subgraphs, functions, attributes, sparse
parts) is looked at before one byte beside it is read. What is refused here: an external location that is not a plain
name in the model's own folder (CVE-2022-25882, CVE-2024-27318 and their successors), links, the address marker that
onnxruntime uses in memory (its pull request 28709: `offset` would be an address), external ranges that do not lie
within their file, and deep nesting (20 nested If nodes of 3.6 KB take onnxruntime a minute to load).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from compressor.errors import RecipeError

NESTING_MAX = 8
SINGLE_FILE_MAX = 2**31 - 2**20
"""protobuf's limit is 2 GiB for a message; some room is left for what the quantizers add to it."""
FILE_MAX = 64 * 2**30
_EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}


def read(path: Path) -> onnx.ModelProto:
    """The model with all its weights in memory. Raises RecipeError (file, reason) for what is not safe or whole."""
    model = read_structure(path)
    for tensor in tensors(model):
        if onnx.external_data_helper.uses_external_data(tensor):
            _load_external(tensor, path)
    return model


def read_structure(path: Path) -> onnx.ModelProto:
    """The model with its external weights left on disk, all of them checked to be readable from the model's folder."""
    content = _bytes(path, SINGLE_FILE_MAX + 2**20)
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # noqa: BLE001  protobuf's DecodeError, which is not ours to import
        raise RecipeError(f"{path}: not an ONNX model ({error})") from None
    if not model.graph.node and not model.graph.output:
        raise RecipeError(f"{path}: not an ONNX model (no nodes, no outputs)")
    depth = nesting(model.graph)
    if depth > NESTING_MAX:
        raise RecipeError(f"{path}: subgraphs nested {depth} deep, at most {NESTING_MAX} are allowed")
    for tensor in tensors(model):
        if onnx.external_data_helper.uses_external_data(tensor):
            _external_range(tensor, path)
    return model


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model, its weights inside where they fit, else in one file `<name>.data` beside it."""
    if weight_bytes(model) > SINGLE_FILE_MAX:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def size(path: Path) -> int:
    """Bytes of a model with its external files."""
    beside = {path.name}
    for tensor in tensors(read_structure(path)):
        if onnx.external_data_helper.uses_external_data(tensor):
            beside |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return sum((path.parent / name).stat().st_size for name in beside)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Of all stored tensors, by their shapes and types."""
    return sum(payload(tensor) for tensor in tensors(model))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph itself and every graph in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs):
                yield from graphs(inner)


def nesting(graph: onnx.GraphProto) -> int:
    """How many subgraphs deep a graph goes; 0 without any. Bounded by protobuf's own nesting limit of 100 messages."""
    inner = [
        sub
        for node in graph.node
        for attribute in node.attribute
        for sub in (*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs)
    ]
    return 1 + max(map(nesting, inner)) if inner else 0


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a model, wherever the format allows one."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph.node)
    for function in model.functions:
        yield from _attribute_tensors(function.node)
        for node in function.node:
            for attribute in node.attribute:
                for sub in (*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs):
                    for graph in graphs(sub):
                        yield from graph.initializer
                        yield from _attribute_tensors(graph.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)


def _bytes(path: Path, limit: int, offset: int = 0, length: int | None = None) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang; a user may link to the model itself, but nothing beside it may be a link
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if length is None else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise RecipeError(f"{path}: not a regular file")
    with os.fdopen(handle, "rb") as file:
        if length is None and status.st_size > limit:
            raise RecipeError(f"{path}: {status.st_size} bytes, at most {limit} are allowed in one ONNX file")
        file.seek(offset)
        return file.read() if length is None else file.read(length)


def _external_range(tensor: onnx.TensorProto, path: Path) -> tuple[Path, int, int]:
    """File, offset and length of a tensor's external data, all checked against the file that is there."""
    what = f"{path}: external data of tensor {tensor.name!r}"
    keys = {entry.key: entry.value for entry in tensor.external_data}
    # protobuf hands out strings that are not UTF-8 as bytes
    if not all(isinstance(text, str) for pair in keys.items() for text in pair):
        raise RecipeError(f"{what}: its keys and values must be text")
    if unknown := sorted(set(keys) - _EXTERNAL_KEYS):
        raise RecipeError(f"{what}: unknown key {unknown[0]!r}, allowed are {', '.join(sorted(_EXTERNAL_KEYS))}")
    location = keys.get("location", "")
    if "_ORT_MEM_ADDR_" in location:
        raise RecipeError(f"{what}: location {location!r} is a memory address, not a file")
    if not location or location in (".", "..") or "/" in location or "\\" in location or "\0" in location:
        raise RecipeError(f"{what}: location {location!r} must be a plain file name beside the model")
    file = path.parent / location
    try:
        status = file.lstat()
    except OSError as error:
        raise RecipeError(f"{what}: {location} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise RecipeError(f"{what}: {location} must be a regular file, not a link")
    offset, length = _number(keys, "offset", 0, what), _number(keys, "length", -1, what)
    if length < 0:
        length = payload(tensor)
    if offset + length > status.st_size:
        raise RecipeError(
            f"{what}: bytes {offset} to {offset + length} lie outside {location}, which has {status.st_size}"
        )
    if length != payload(tensor):
        raise RecipeError(f"{what}: {length} bytes, its shape and type need {payload(tensor)}")
    return file, offset, length


def _number(keys: dict[str, str], key: str, default: int, what: str) -> int:
    text = keys.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise RecipeError(f"{what}: {key} is {text!r}, must be a whole number ≥ 0")
    return int(text)


def payload(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's shape and type need, in Python integers."""
    count = 1
    for dimension in tensor.dims:
        if dimension < 0:
            raise RecipeError(f"tensor {tensor.name!r}: dimension {dimension} is negative")
        count *= dimension
    if count > FILE_MAX:
        raise RecipeError(f"tensor {tensor.name!r}: {count} elements")
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        raise RecipeError(f"tensor {tensor.name!r}: element type {tensor.data_type} is unknown")
    return (count * bits + 7) // 8


def _bits() -> dict[int, int]:
    sub_byte = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
    table = {}
    for name, code in onnx.TensorProto.DataType.items():
        if name not in ("UNDEFINED", "STRING"):
            table[code] = sub_byte.get(name) or onnx.helper.tensor_dtype_to_np_dtype(code).itemsize * 8
    return table


_BITS = _bits()


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    file, offset, length = _external_range(tensor, path)
    tensor.raw_data = _bytes(file, FILE_MAX, offset, length)
    if len(tensor.raw_data) != length:
        raise RecipeError(f"{path}: external data of tensor {tensor.name!r}: {file.name} ends early")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
