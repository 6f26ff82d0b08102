"""Writes the generated modules from the `.proto` files: `python -m protos.generate`, or `make proto`.

protoc's own Python output would register in the default pool and demand a protobuf of its own version at import, so
a module here is only the serialised descriptor handed to `protos.pool`; the `.pyi` beside it is protoc's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

HERE = Path(__file__).parent
SOURCES = ("model_config.proto", "grpc_service.proto")
"""In order of dependency."""

MODULE = '''"""Generated from {source} by protos/generate.py; do not edit."""

from protos import pool as _pool
{imports}
DESCRIPTOR, _offered = _pool.load(
    "{source}",
{serialized}
)
globals().update(_offered)
'''
STUB = """# Generated from {source} by protos/generate.py; do not edit.
# protoc writes bare Mapping for maps of messages, and leaves out fields named by a keyword (`global`)
# mypy: disable-error-code="type-arg,no-untyped-def"

{text}"""
BYTES_A_LINE = 64


def render() -> dict[str, str]:
    """File name in this folder to its text, for every generated file. Raises RuntimeError where protoc refuses."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        arguments = [f"-I{HERE}", f"--pyi_out={out}", f"--descriptor_set_out={out / 'set'}", *SOURCES]
        if protoc.main(["protoc", *arguments]):
            raise RuntimeError("protoc refused the .proto files; its message stands above")
        files = {file.name: file for file in FileDescriptorSet.FromString((out / "set").read_bytes()).file}
        rendered = {}
        for source in SOURCES:
            stem = _module(source)
            rendered[f"{stem}.py"] = _render_module(files[source])
            rendered[f"{stem}.pyi"] = _render_stub(source, (out / f"{stem}.pyi").read_text())
    return rendered


def _module(source: str) -> str:
    return source.removesuffix(".proto") + "_pb2"


def _render_module(file: FileDescriptorProto) -> str:
    serialized = file.SerializeToString(deterministic=True)
    lines = (serialized[i : i + BYTES_A_LINE] for i in range(0, len(serialized), BYTES_A_LINE))
    imports = "".join(f"from protos import {_module(name)} as _  # noqa: F401\n" for name in file.dependency)
    return MODULE.format(source=file.name, imports=imports, serialized="\n".join(f"    {line!r}" for line in lines))


def _render_stub(source: str, text: str) -> str:
    for other in SOURCES:
        text = text.replace(f"import {_module(other)} as ", f"from protos import {_module(other)} as ")
    return STUB.format(source=source, text=text)


def main() -> int:
    for name, text in render().items():
        (HERE / name).write_text(text)
        print(f"wrote protos/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
