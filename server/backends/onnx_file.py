"""What an ONNX file points at, read from its bytes without the onnx package and without loading a weight.

A foreign file may name external data anywhere on the disk, and ONNX Runtime's own marker for "this is an address in
memory" (onnxruntime #28709). Both are refused here before ONNX Runtime sees the file. Every TensorProto counts:
initializers, sparse parts, attributes, subgraphs, functions. The walk follows field numbers of onnx.proto3 and skips
everything else; MiniLM (90 MB) takes 3 ms.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from server.backends.base import BackendError

MEMORY_MARKER = "_ORT_MEM_ADDR_"
"""In ONNX Runtime `*/_ORT_MEM_ADDR_/*`; any location that holds it is refused."""

MAX_GRAPH_DEPTH = 8
"""Subgraphs in subgraphs. 20 nested Ifs in 3.6 KB keep ONNX Runtime busy for a minute; exporters nest 2 or 3."""

MAX_FIELDS = 5_000_000
"""Fields that the walk looks at, some 3 s of work; a model of 10 000 nodes has about 300 000."""

# message -> field number -> message inside; only paths that can lead to a TensorProto
_NESTED: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_ENTRY_KEYS = frozenset({"location", "offset", "length", "checksum"})

Bytes = mmap.mmap | bytes


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where one tensor's bytes are said to be; `length` None: to the end of the file."""

    location: str
    offset: int
    length: int | None


def check(path: Path) -> tuple[ExternalData, ...]:
    """Raises BackendError unless all external data of the file at `path` lies in plain files beside it.

    Refused are: paths that leave the folder, links (symbolic and hard), what is no regular file, extents beyond the
    file's end, unknown keys, graphs nested deeper than MAX_GRAPH_DEPTH, and files that are no ONNX.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise BackendError(f"{path.name}: is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = tuple(external_data(data, path.name))
    except OSError as error:
        raise BackendError(f"{path.name}: cannot be read: {error.strerror}") from error
    for location in dict.fromkeys(entry.location for entry in found):
        size = _file_size(path.parent, location, path.name)
        for entry in found:
            end = entry.offset + (entry.length or 0)
            if entry.location == location and end > size:
                raise BackendError(
                    f"{path.name}: external data '{location}' ends at byte {end}, its file has only {size}"
                )
    return found


def external_data(data: Bytes, name: str) -> Iterator[ExternalData]:
    """All external-data references in a serialised ModelProto. Raises BackendError."""
    budget = MAX_FIELDS
    # message, start, end, graphs above it
    stack: list[tuple[str, int, int, int]] = [("Model", 0, len(data), 0)]
    while stack:
        message, start, end, depth = stack.pop()
        nested = _NESTED[message]
        entries: dict[str, str] = {}
        for number, begin, stop in fields(data, start, end, name):
            budget -= 1
            if budget < 0:
                raise BackendError(f"{name}: has more than {MAX_FIELDS} fields")
            inner = nested.get(number)
            if inner is None:
                continue
            if inner == "Entry":
                key, value = _entry(data, begin, stop, name)
                entries[key] = value
                continue
            inner_depth = depth + (inner == "Graph")
            if inner_depth > MAX_GRAPH_DEPTH:
                raise BackendError(f"{name}: graphs are nested deeper than {MAX_GRAPH_DEPTH}")
            stack.append((inner, begin, stop, inner_depth))
        if entries:
            yield _reference(entries, name)


def _reference(entries: Mapping[str, str], name: str) -> ExternalData:
    unknown = sorted(set(entries) - _ENTRY_KEYS)
    if unknown or "location" not in entries:
        raise BackendError(f"{name}: external data with keys {sorted(entries)}; allowed are {sorted(_ENTRY_KEYS)}")
    numbers: list[int] = []
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise BackendError(f"{name}: external data with {key} '{text[:40]}', which is no number of bytes")
        numbers.append(int(text))
    return ExternalData(entries["location"], numbers[0], numbers[1] if "length" in entries else None)


def _file_size(folder: Path, location: str, name: str) -> int:
    plain = PurePosixPath(location)
    if MEMORY_MARKER in location:
        raise BackendError(f"{name}: external data that is an address in memory")
    if not location or plain.is_absolute() or ".." in plain.parts or "\\" in location or "\0" in location:
        raise BackendError(f"{name}: external data '{location[:100]}' is not a plain path beside the model file")
    step = folder
    for part in plain.parts:
        step = step / part
        try:
            status = step.lstat()
        except OSError as error:
            raise BackendError(f"{name}: external data '{location[:100]}': {error.strerror}") from error
        if stat.S_ISLNK(status.st_mode):
            raise BackendError(f"{name}: external data '{location}' leads through a symbolic link")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise BackendError(f"{name}: external data '{location}' is not a regular file with one name")
    return status.st_size


def fields(data: Bytes, position: int, end: int, name: str) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field between `position` and `end`; start and end are those of its content."""
    while position < end:
        tag, position = _varint(data, position, end, name)
        wire = tag & 7
        start = position
        if wire == 0:
            _, position = _varint(data, position, end, name)
        elif wire == 1:
            position += 8
        elif wire == 2:
            length, start = _varint(data, position, end, name)
            position = start + length
        elif wire == 5:
            position += 4
        else:
            raise BackendError(f"{name}: is not an ONNX file (wire type {wire} at byte {start - 1})")
        if position > end:
            raise BackendError(f"{name}: is cut off or not an ONNX file (byte {start})")
        yield (tag >> 3 if wire == 2 else 0), start, position


def _varint(data: Bytes, position: int, end: int, name: str) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise BackendError(f"{name}: is cut off or not an ONNX file (byte {position})")


def _entry(data: Bytes, start: int, end: int, name: str) -> tuple[str, str]:
    parts = {number: data[begin:stop] for number, begin, stop in fields(data, start, end, name) if number in (1, 2)}
    try:
        return parts.get(1, b"").decode(), parts.get(2, b"").decode()
    except UnicodeDecodeError:
        raise BackendError(f"{name}: external data whose keys are not text") from None
