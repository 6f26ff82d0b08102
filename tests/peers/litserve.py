"""LitServe over HTTP (it has no gRPC): a server of a few lines around onnxruntime (`litserve_app.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.peer import CACHE, ORT, Running, entries, environment, free_ports, http_ready, spawned

VERSION = "0.2.19"
SETTINGS = (
    "HTTP/1.1, tensors as base64 in JSON, uvloop and httptools, a worker process per instance with one onnxruntime "
    "thread; without batching and fast_queue, with which it was slower and kept up to a core busy when idle"
)


@contextmanager
def started(models: Path) -> Iterator[Running]:
    """All entries below `models`, on a free port, ready. Raises NotInstalled."""
    python = environment("litserve", f"litserve=={VERSION}", ORT, "uvloop", "httptools")
    (port,) = free_ports(1)
    served = entries(models)
    given = {name: str(one.file) for name, one in served.items()}
    workers = str(max(one.instances for one in served.values()))
    app = Path(__file__).with_name("litserve_app.py")
    command: list[str | Path] = [python, "-P", app, str(port), workers, json.dumps(given)]
    url = f"http://127.0.0.1:{port}/health"
    with spawned(command, lambda: http_ready(url), CACHE / "litserve" / "log") as process:
        yield Running("LitServe", VERSION, SETTINGS, process, f"127.0.0.1:{port}", http=True)
