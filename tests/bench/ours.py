"""Our server as the benchmarks see every server."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.children import ServerChild, started_server
from tests.peers.peer import Running

NAME = "ours"


@contextmanager
def started(models: Path, *flags: str) -> Iterator[Running]:
    with started_server(models, *flags) as child:
        yield running(child, *flags)


def running(child: ServerChild, *flags: str) -> Running:
    settings = f"defaults{' with ' + ' '.join(flags) if flags else ''}; metrics, statistics, validation on"
    process = psutil.Process(child.process.pid)
    return Running(NAME, importlib.metadata.version("demiglace"), settings, process, child.url)


def session_threads(child: ServerChild, model: str) -> int:
    """How many threads one run of a model has, as the server said when it had loaded it."""
    text = "\n".join(child.lines)
    found = re.search(rf"^model={re.escape(model)}  .*instances × threads=\d+ × (\d+)", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the server did not say how many threads a run of {model} has:\n{text}")
    return int(found[1])
