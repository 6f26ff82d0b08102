"""The first load of a model file that nobody vouched for, in a child process that may crash, hang or eat memory.

A malformed file can kill ONNX Runtime or keep it busy for minutes (field notes: onnxruntime #27699, #27950, #23258);
here that costs a child. Used for entries without a verified card unless `--backend-config=onnxruntime,preflight=off`.
What it costs, on two cores: 0.28 s for a tiny model (the start of Python and the import of onnxruntime), 2 s for MiniLM
(90 MB; the graph optimizer, which runs in the child too, since it is among what crashed).

It knows no backend: a loader is named as `module:function` and imported by the child alone.

    python -m server.backends.preflight LOADER FILE      exit 0, or 1 with one line on stdout
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from server.backends.base import BackendError

TIMEOUT_S = 60.0
MEMORY_BASE = 4 << 30
MEMORY_PER_BYTE = 6
"""Address space that the child may have: the base, and this many times the bytes of the files in the folder."""


def first_load(path: Path, loader: str, timeout: float = TIMEOUT_S) -> None:
    """Have `loader`, a `module:function` of a Path, load `path` in a child process.

    Raises BackendError with one line when that fails, crashes or takes too long.
    """
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "server.backends.preflight", loader, str(path.resolve())]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BackendError(f"{path.name}: a first load in a child process took longer than {timeout:g} s") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BackendError(f"{path.name}: a first load in a child process died of {name}")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"the child process ended with status {done.returncode}"]
        raise BackendError(lines[-1])


def main(loader: str, path: Path) -> int:
    """The child: limit itself, load, say in one line what was wrong."""
    total = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    memory = MEMORY_BASE + MEMORY_PER_BYTE * total
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["OMP_NUM_THREADS"] = "1"
    module, _, function = loader.partition(":")
    try:
        getattr(importlib.import_module(module), function)(path)
    except BackendError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
