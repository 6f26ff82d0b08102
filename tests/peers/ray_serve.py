"""Ray Serve over HTTP: a deployment of a few lines around onnxruntime for each model (`ray_app.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.peer import CACHE, ORT, Running, entries, environment, free_ports, spawned

VERSION = "2.60.0"
SETTINGS = (
    "HTTP/1.1, tensors as base64 in JSON, a replica per instance with one onnxruntime thread, no dashboard, no access "
    "log; without @serve.batch, with which it was slower"
)


@contextmanager
def started(models: Path) -> Iterator[Running]:
    """All entries below `models`, on a free port, ready. Raises NotInstalled."""
    python = environment("ray", f"ray[serve]=={VERSION}", ORT)
    (port,) = free_ports(1)
    given = {name: {"file": str(one.file), "replicas": one.instances} for name, one in entries(models).items()}
    log = CACHE / "ray" / "log"
    command: list[str | Path] = [python, "-P", Path(__file__).with_name("ray_app.py"), str(port), json.dumps(given)]
    with spawned(command, lambda: "ready" in log.read_text().split("\n"), log) as process:
        yield Running("Ray Serve", VERSION, SETTINGS, process, f"127.0.0.1:{port}", http=True)
