"""Entries for the fake backend, and a really started server in this process, for the tests of the server's shell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from protos import card, repository
from protos.datatypes import BY_NAME
from server.app import Server
from server.backends.fake import FakeSession
from server.catalog import Catalog
from server.errors import ServerError
from server.grpc_settings import GrpcSettings
from server.loading import EntryLoader
from server.request import InferRequest, Result, Tensor
from server.settings import Settings

SETTINGS = Settings(
    repositories=(), grpc=GrpcSettings(port=0), metrics_port=0, exit_timeout_secs=10, model_load_thread_count=2
)


def model_text(
    behaviour: Mapping[str, object] = {},
    datatype: str = "FP32",
    shape: tuple[int, ...] = (-1, 4),
    inputs: str = "x",
    constant: object = None,
) -> str:
    """A `model.fake` with one output y, which is the first input."""
    rows = [f'[[input]]\nname = "{n}"\ndatatype = "{datatype}"\nshape = {list(shape)}\n' for n in inputs.split(",")]
    rows.append(f'[[output]]\nname = "y"\ndatatype = "{datatype}"\nshape = {list(shape)}\n')
    if constant is not None:
        rows.append(f"constant = {constant}\n")
    rows.append("[behaviour]\n" + "".join(f"{key} = {value!r}\n" for key, value in behaviour.items()))
    return "".join(rows).replace("True", "true")


def write_entry(root: Path, name: str = "m", version: int = 1, config: str = "", **model: Any) -> Path:
    """`<root>/<name>/<version>/model.fake`, and a config.pbtxt where there is a text for one; returns the entry."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    # renamed into place, as a publisher does, so that polling never sees half a file
    (folder / ".model").write_text(model_text(**model))
    (folder / ".model").rename(folder / "model.fake")
    if config:
        (root / name / "config.pbtxt").write_text(config)
    return root / name


def write_card(root: Path, name: str = "m", version: int = 1) -> Path:
    """A card that matches the version's files as they are now."""
    folder = repository.read(root, name).version_path(version)
    files = card.hashes(folder)
    found = card.Card(name, version, "2026-01-01T00:00:00Z", (), (), {}, 1, 1, (), {}, files, {}, {})
    return card.write(found, folder)


FP32 = BY_NAME["FP32"]


@contextmanager
def catalog_of(*roots: Path, start: tuple[str, ...] = (), **options: Any) -> Iterator[Catalog]:
    catalog = Catalog(roots, EntryLoader(SETTINGS), threads=2, **options)
    try:
        catalog.start(start)
        yield catalog
    finally:
        catalog.stop(10)


def ask(catalog: Catalog, name: str = "m", version: str = "") -> Result:
    """One row's answer."""
    results: list[Result] = []
    done = threading.Event()

    def on_done(request: InferRequest, result: Result) -> None:
        results.append(result)
        done.set()

    row = np.zeros((1, 4), np.float32)
    catalog.model(name, version).submit(InferRequest(name, (Tensor("x", FP32, row),)), on_done)
    assert done.wait(10)
    return results[0]


def answer(catalog: Catalog, name: str = "m", version: str = "") -> float:
    result = ask(catalog, name, version)
    assert not isinstance(result, ServerError), result
    return float(result.outputs[0].array.flat[0])


def eventually(condition: Callable[[], bool], changed: threading.Event) -> None:
    """Wait for a state that other threads bring about; `changed` is set at every change of the catalog."""
    for _ in range(1000):
        if condition():
            return
        changed.wait(0.01)
        changed.clear()
    raise AssertionError("it did not happen")


def states(catalog: Catalog) -> dict[tuple[str, str], tuple[str, str]]:
    return {(row.name, row.version): (row.state, row.reason) for row in catalog.index()}


@dataclass
class Running:
    server: Server

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    def session(self, name: str = "m", version: str = "") -> FakeSession:
        """The fake session behind a model: its gate and its record of runs."""
        session = self.server.catalog.model(name, version)._session
        assert isinstance(session, FakeSession)
        return session


@contextmanager
def running(root: Path, **settings: Any) -> Iterator[Running]:
    """A started server on free ports; stopped at the end."""
    server = Server(replace(SETTINGS, repositories=(root,), **settings))
    try:
        server.start()
        yield Running(server)
    finally:
        server.stop()


def tensor(values: Any, name: str = "x", datatype: str = "FP32") -> triton.InferInput:
    array = np.asarray(values, BY_NAME[datatype].numpy)
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
