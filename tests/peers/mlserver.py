"""MLServer with a runtime of a few lines around onnxruntime (`mlserver_runtime.py`), asked over gRPC."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.peer import (
    CACHE,
    ORT,
    Running,
    Served,
    entries,
    environment,
    free_ports,
    http_ready,
    listening,
    spawned,
)

VERSION = "1.7.1"
SETTINGS = (
    "one process (parallel_workers 0: a worker process more costs a queue between processes per request), no adaptive "
    "batching (merging requests costs it more than runs of one row), uvloop, one onnxruntime thread a run; models of "
    "several instances run in threads"
)


@contextmanager
def started(models: Path) -> Iterator[Running]:
    """All entries below `models`, on free ports, ready. Raises NotInstalled."""
    python = environment("mlserver", f"mlserver=={VERSION}", ORT)
    http, grpc, metrics = free_ports(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(Path(__file__).with_name("mlserver_runtime.py"), folder)
        ports = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
        (folder / "settings.json").write_text(json.dumps({**ports, "parallel_workers": 0, "debug": False}))
        for entry, served in entries(models).items():
            _write(folder / entry, entry, served)
        command: list[str | Path] = [python.with_name("mlserver"), "start", folder]
        environ = {"PYTHONPATH": str(folder)}
        url = f"http://127.0.0.1:{http}/v2/health/ready"
        # it answers HTTP before it listens for gRPC
        with spawned(
            command, lambda: http_ready(url) and listening(grpc), CACHE / "mlserver" / "log", environ
        ) as process:
            yield Running("MLServer", VERSION, SETTINGS, process, f"127.0.0.1:{grpc}")


def _write(folder: Path, name: str, served: Served) -> None:
    parameters = {"uri": str(served.file), "extra": {"in_thread": served.instances > 1}}
    settings = {"name": name, "implementation": "mlserver_runtime.OnnxRuntime", "parameters": parameters}
    folder.mkdir()
    (folder / "model-settings.json").write_text(json.dumps(settings))
