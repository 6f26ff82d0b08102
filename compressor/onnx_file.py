"""The files that an ONNX model consists of: which, how large, and their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from compressor.passes import onnx_files


def files(path: Path) -> dict[str, Path]:
    """Itself and the external weights that it names, by file name; all lie in one folder (`onnx_files` proves it)."""
    found = {path.name: path}
    for tensor in onnx_files.tensors(onnx_files.read_structure(path)):
        if onnx.external_data_helper.uses_external_data(tensor):
            name = next(entry.value for entry in tensor.external_data if entry.key == "location")
            found[name] = path.parent / name
    return found


def size(path: Path) -> int:
    """Bytes of all files of a model."""
    return sum(file.stat().st_size for file in files(path).values())


def sha256(path: Path) -> str:
    """Of all files of a model, their names included."""
    digest = hashlib.sha256()
    for name, file in sorted(files(path).items()):
        digest.update(f"{name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
