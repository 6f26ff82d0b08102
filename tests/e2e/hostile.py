"""Malformed requests, generated from a seed: each kind says which answers are right for it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from grpc import StatusCode
from tritonclient.grpc import service_pb2

PREFIX = "/inference.GRPCInferenceService/"
BAD = frozenset({StatusCode.INVALID_ARGUMENT})
UNKNOWN = frozenset({StatusCode.NOT_FOUND})
MAYBE = frozenset({StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.UNIMPLEMENTED})
"""Of bytes at random: some are a right request by luck."""

Request = service_pb2.ModelInferRequest


@dataclass(frozen=True)
class Case:
    kind: str
    path: str
    body: bytes
    allowed: frozenset[StatusCode]


def good(value: float = 1.0, rows: int = 1) -> Request:
    """A right request for the model `add`: sum = a + b."""
    request = Request(model_name="add")
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="FP32", shape=[rows, 4])
        request.raw_input_contents.append(np.full((rows, 4), value, np.float32).tobytes())
    return request


def text(raw: bytes, shape: tuple[int, ...] = (1, 2)) -> Request:
    request = Request(model_name="text", raw_input_contents=[raw])
    request.inputs.add(name="a", datatype="BYTES", shape=shape)
    return request


def wrong_shape(r: random.Random) -> Request:
    request = good()
    shape = [r.choice([0, 1, 3, 5, 4096, 1 << 31, 1 << 62, -1, -(1 << 63)]) for _ in range(r.randrange(6))]
    if shape == [1, 4]:
        shape = [4, 1]
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)
    return request


def absurd_shape(r: random.Random) -> Request:
    request = good()
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend([r.choice([1, 1 << 40, (1 << 63) - 1])] * r.choice([63, 64, 65, 1000, 5000]))
    return request


def wrong_datatype(r: random.Random) -> Request:
    request = good()
    request.inputs[r.randrange(2)].datatype = r.choice(
        ["", "FP64", "INT32", "BYTES", "BF16", "BOOL", "fp32", "FP8", "TYPE_FP32", "\0", "é" * 1000]
    )
    return request


def wrong_byte_count(r: random.Random) -> Request:
    request = good()
    request.raw_input_contents[r.randrange(2)] = bytes(r.choice([0, 1, 15, 17, 32, 5000]))
    return request


def too_many_rows(r: random.Random) -> Request:
    return good(rows=r.choice([5, 6, 100, 2000]))


def missing_input(r: random.Random) -> Request:
    request = good()
    del request.inputs[r.randrange(2) :]
    del request.raw_input_contents[len(request.inputs) :]
    return request


def repeated_input(r: random.Random) -> Request:
    request = good()
    for _ in range(r.choice([1, 2, 200])):
        request.inputs.append(request.inputs[0])
        request.raw_input_contents.append(bytes(16))
    return request


def unknown_input(r: random.Random) -> Request:
    request = good()
    request.inputs[0].name = r.choice(["", "A", "a ", "a\0", "../a", "x" * 5000])
    return request


def missing_contents(r: random.Random) -> Request:
    request = good()
    del request.raw_input_contents[r.randrange(2) :]
    return request


def surplus_contents(r: random.Random) -> Request:
    request = good()
    request.raw_input_contents.extend([b""] * r.choice([1, 3, 1000]))
    return request


def wrong_typed_contents(r: random.Random) -> Request:
    request = good()
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.contents.fp32_contents.extend([1.0] * 4)
    contents = request.inputs[r.randrange(2)].contents
    harm = r.randrange(4)
    if harm == 0:
        contents.int_contents.append(1)
    elif harm == 1:
        contents.fp32_contents.append(1.0)
    elif harm == 2:
        contents.Clear()
        contents.bytes_contents.append(b"\xff" * 16)
    else:
        request.raw_input_contents.append(bytes(16))
    return request


def broken_bytes(r: random.Random) -> Request:
    lengths = [0xFFFFFFFF, 0x7FFFFFFF, 5, 4]
    return r.choice([
        lambda: text(b"\x01\x00"),
        lambda: text(struct.pack("<I", r.choice(lengths)) + b"abc"),
        lambda: text(bytes(4)),
        lambda: text(bytes(12)),
        lambda: text(bytes(8), (1, 3)),
        lambda: text(bytes(4 * r.randrange(3, 3000))),
        lambda: text(b"", (1 << 31, 2)),
    ])()  # fmt: skip


def wrong_outputs(r: random.Random) -> Request:
    request = good()
    harm = r.randrange(4)
    if harm == 0:
        request.outputs.add(name=r.choice(["", "SUM", "sum\n", "x" * 4000]))
    elif harm == 1:
        for _ in range(r.choice([2, 500])):
            request.outputs.add(name="sum")
    else:
        value = request.outputs.add(name="sum").parameters["classification"]
        if harm == 2:
            value.string_param = "3"
        else:
            value.int64_param = r.choice([-1, -(1 << 63)])
    return request


def wrong_parameters(r: random.Random) -> Request:
    request = good()
    key = r.choice(["priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "triton_x", "any"])
    value = request.parameters[key]
    if key in ("priority", "timeout"):
        if r.random() < 0.5:
            value.int64_param = r.choice([-1, -(1 << 63)])
        else:
            value.string_param = "high"
    elif key == "any":
        value.uint64_param = (1 << 64) - 1
    elif key != "triton_x":
        value.double_param = float("nan")
    return request


def unknown_model(r: random.Random) -> Request:
    request = good()
    request.model_name = r.choice(["", "Add", "add/1", "../add", "/etc/passwd", "a\nb", "\x1b[31m", "x" * 6000, "é"])
    return request


def unknown_version(r: random.Random) -> Request:
    request = good()
    request.model_version = r.choice(["2", "7", "9223372036854775807"])
    return request


def wrong_version(r: random.Random) -> Request:
    request = good()
    request.model_version = r.choice(["0", "-1", "x", "1.0", " 1", "1e3", "9" * 5000, "../1", "٣"])
    return request


KINDS: dict[Callable[[random.Random], Request], frozenset[StatusCode]] = {
    wrong_shape: BAD, absurd_shape: BAD, wrong_datatype: BAD, wrong_byte_count: BAD, too_many_rows: BAD,
    missing_input: BAD, repeated_input: BAD, unknown_input: BAD, missing_contents: BAD, surplus_contents: BAD,
    wrong_typed_contents: BAD, broken_bytes: BAD, wrong_outputs: BAD, wrong_parameters: BAD, unknown_model: UNKNOWN,
    unknown_version: UNKNOWN, wrong_version: BAD,
}  # fmt: skip


def shared_memory(r: random.Random) -> Request:
    request = good()
    where = r.choice([request.inputs[0], request.outputs.add(name="sum")])
    where.parameters["shared_memory_region"].string_param = r.choice(["/x", "../x", "", "triton_python_backend_shm"])
    where.parameters["shared_memory_byte_size"].int64_param = r.choice([-1, 0, 1 << 62])
    return request


def mutated(r: random.Random) -> bytes:
    body = bytearray(r.choice([good(), text(struct.pack("<I", 2) + b"ab" + bytes(4))]).SerializeToString())
    for _ in range(r.randrange(1, 6)):
        at = r.randrange(len(body))
        harm = r.randrange(3)
        if harm == 0:
            body[at] ^= 1 << r.randrange(8)
        elif harm == 1:
            del body[at : at + r.randrange(1, 9)]
        else:
            body[at:at] = r.randbytes(r.randrange(1, 9))
        body = body or bytearray(b"\0")
    return bytes(body)


OTHERS = (
    "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad",
    "RepositoryModelUnload", "ServerMetadata", "TraceSetting", "LogSettings", "SystemSharedMemoryRegister",
)  # fmt: skip


def hostile_load(r: random.Random) -> Case:
    """Loads that must fail; none names a model that is there, so that the models asked meanwhile stay."""
    request = service_pb2.RepositoryModelLoadRequest(
        model_name=r.choice(["", "nobody", "../add", "/etc", ".", "..", "add/1", "a\0", "x" * 3000, "-", ".add"])
    )
    harm = r.randrange(3)
    if harm == 1:
        request.parameters["config"].string_param = r.choice(["{" * 2000, "[]", "{}", '{"a": ' * 500, "\0"])
    elif harm == 2:
        request.parameters["file:../../x"].bytes_param = b"x"
    allowed = BAD | UNKNOWN | {StatusCode.UNIMPLEMENTED}
    return Case("load", PREFIX + "RepositoryModelLoad", request.SerializeToString(), frozenset(allowed))


def cases(count: int, seed: int) -> Iterator[Case]:
    r = random.Random(seed)
    infer = PREFIX + "ModelInfer"
    kinds = list(KINDS.items())
    for _ in range(count):
        dice = r.random()
        if dice < 0.75:
            make, allowed = r.choice(kinds)
            yield Case(make.__name__, infer, make(r).SerializeToString(), allowed)
        elif dice < 0.78:
            body = shared_memory(r).SerializeToString()
            yield Case("shared_memory", infer, body, frozenset({StatusCode.UNIMPLEMENTED}))
        elif dice < 0.9:
            yield Case("mutated", infer, mutated(r), MAYBE)
        elif dice < 0.95:
            yield Case("random", infer, r.randbytes(r.randrange(300)), MAYBE)
        elif dice < 0.98:
            yield Case("other", PREFIX + r.choice(OTHERS), r.randbytes(r.randrange(40)), MAYBE)
        else:
            yield hostile_load(r)
