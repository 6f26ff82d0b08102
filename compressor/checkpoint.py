"""What is kept of a finished pass, so that a job that was stopped goes on from there.

    .demiglace/<job name>/<pass>-<key>/     all files that the pass wrote
        checkpoint.json                      the artifact: kind, inputs, outputs, trail, and the hash of every file

The key is a hash of everything that the result depends on. A folder is written under a name that begins with a dot
and renamed when it is whole; a torch module is kept as its state dict (safetensors), to be loaded into the module that
the source gives again: nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifact import Artifact, Axis, Kind, Tensor
from compressor.errors import PassError
from compressor.onnx_file import file_sha256
from protos.card import Step
from protos.datatypes import BY_NAME

if TYPE_CHECKING:
    import torch

FILENAME = "checkpoint.json"
STATE = "state.safetensors"
SCHEMA = 1
STAGING = ".staging-"


def key(parts: Any) -> str:
    """A short hash of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Store:
    """The checkpoints of one job. Owns its folder; two runs of one job at once each stage under a name of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, name: str) -> bool:
        return self._read(name) is not None

    def load(self, name: str, module: Callable[[], torch.nn.Module]) -> Artifact | None:
        """The artifact of a finished pass, or None where there is none or it is damaged. `module` gives the source's
        module afresh, for one of kind torch."""
        data = self._read(name)
        if data is None:
            return None
        folder = self.folder / name
        artifact = Artifact(
            Kind(data["kind"]),
            tuple(_tensor(row) for row in data["inputs"]),
            tuple(_tensor(row) for row in data["outputs"]),
            path=folder / data["path"] if data["path"] else None,
            trail=tuple(Step(**step) for step in data["trail"]),
        )
        if artifact.kind is Kind.ONNX:
            return artifact
        import safetensors.torch

        rebuilt = module()
        safetensors.torch.load_model(rebuilt, folder / STATE)
        return artifact.became(module=rebuilt)

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """An empty folder for a pass to write to; whatever was not committed is gone afterwards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        with tempfile.TemporaryDirectory(
            prefix=f"{STAGING}{os.getpid()}-", dir=self.folder, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder) / "files"

    def commit(self, staged: Path, name: str, artifact: Artifact) -> Artifact:
        """Keep what a pass wrote; the artifact that comes back points to where it is kept."""
        if artifact.module is not None:
            import safetensors.torch

            safetensors.torch.save_model(artifact.module, str(staged / STATE))
        elif artifact.path is None or not artifact.path.is_relative_to(staged):
            raise PassError(f"{artifact.trail[-1].name}: {artifact.path} is not in the pass's own folder, {staged}")
        inside = artifact.path.relative_to(staged) if artifact.path else None
        data = {
            "schema": SCHEMA,
            "kind": artifact.kind.value,
            "path": inside.as_posix() if inside else None,
            "inputs": [_row(tensor) for tensor in artifact.inputs],
            "outputs": [_row(tensor) for tensor in artifact.outputs],
            "trail": [asdict(step) for step in artifact.trail],
            "files": {
                path.relative_to(staged).as_posix(): file_sha256(path)
                for path in sorted(staged.rglob("*"))
                if path.is_file()
            },
        }
        (staged / FILENAME).write_text(json.dumps(data, indent=1, default=str))
        target = self.folder / name
        try:
            staged.rename(target)
        except OSError:  # another run of the same job was first, or a damaged checkpoint lies there
            if not self.has(name):
                shutil.rmtree(target)
                staged.rename(target)
        return artifact.became(path=target / inside if inside else None)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the checkpoints of other parameters, sources and versions, once a job is through."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and not path.name.startswith(".") and path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def _read(self, name: str) -> Mapping[str, Any] | None:
        folder = self.folder / name
        try:
            data = json.loads((folder / FILENAME).read_text())
            whole = data["schema"] == SCHEMA and all(
                file_sha256(folder / file) == digest for file, digest in data["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return data if whole else None

    def _sweep(self) -> None:
        """Remove what killed runs have left."""
        for path in self.folder.glob(f"{STAGING}*"):
            owner = path.name.removeprefix(STAGING).partition("-")[0]
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _row(tensor: Tensor) -> dict[str, Any]:
    shape = [asdict(dim) if isinstance(dim, Axis) else dim for dim in tensor.shape]
    return {"name": tensor.name, "datatype": tensor.datatype.name, "shape": shape}


def _tensor(row: Mapping[str, Any]) -> Tensor:
    shape = tuple(dim if isinstance(dim, int) else Axis(**dim) for dim in row["shape"])
    return Tensor(row["name"], BY_NAME[row["datatype"]], shape)
