"""What tests of the server's core share: a clock moved by hand, an answer sheet, small models on the fake backend."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np

from protos.datatypes import BY_NAME
from protos.model_config import DynamicBatching, ModelConfig, TensorSpec
from server.backends import get
from server.backends.base import Device, LoadRequest
from server.backends.fake import FakeSession
from server.model import Model
from server.request import InferRequest, RequestedOutput, Response, Result, Tensor

MS = 1_000_000
FP32 = BY_NAME["FP32"]


class HandClock:
    """Monotonic nanoseconds that move only when told to."""

    def __init__(self, now: int = 1_000 * MS) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, ns: int) -> int:
        self.now += ns
        return self.now


class Sheet:
    """Collects answers in the order in which they come; knows when a request is answered twice."""

    def __init__(self) -> None:
        self._change = Condition()
        self.order: list[InferRequest] = []
        self.results: dict[InferRequest, Result] = {}

    def __call__(self, request: InferRequest, result: Result) -> None:
        with self._change:
            assert request not in self.results, "answered twice"
            self.order.append(request)
            self.results[request] = result
            self._change.notify_all()

    def wait(self, number: int, timeout: float = 20.0) -> None:
        with self._change:
            assert self._change.wait_for(lambda: len(self.order) >= number, timeout), f"{len(self.order)} of {number}"

    def values(self, request: InferRequest, output: str | int = 0) -> list[Any]:
        """The output as lists; fails on an error."""
        result = self.results[request]
        assert isinstance(result, Response), result
        if isinstance(output, int):
            return list(result.outputs[output].array.tolist())
        return list(next(t for t in result.outputs if t.name == output).array.tolist())


def waiting(rows: int = 1, group: object = None, **fields: Any) -> InferRequest:
    """A request as validation leaves it, for tests that begin at the queue."""
    request = InferRequest("m", (), **fields)
    request.rows, request.group = rows, group
    return request


def request(*values: float, width: int = 4, outputs: Sequence[str] = (), **fields: Any) -> InferRequest:
    """One row per value, each filled with it, as input `x`."""
    array = np.repeat(np.asarray(values, np.float32)[:, None], width, axis=1)
    wanted = tuple(RequestedOutput(name) for name in outputs)
    return InferRequest("m", (Tensor("x", FP32, array),), outputs=wanted, **fields)


def model_text(behaviour: str = "", dims: str = "[-1, 4]") -> str:
    return (
        f'[[input]]\nname = "x"\ndatatype = "FP32"\nshape = {dims}\n'
        f'[[output]]\nname = "y"\ndatatype = "FP32"\nshape = {dims}\n[behaviour]\n{behaviour}\n'
    )


def config(max_batch_size: int = 8, dims: tuple[int, ...] = (4,), **batching: Any) -> ModelConfig:
    return ModelConfig(
        "m",
        max_batch_size,
        (TensorSpec("x", FP32, dims),),
        (TensorSpec("y", FP32, dims),),
        backend="fake",
        dynamic_batching=DynamicBatching(**batching),
    )


def load_fake(folder: Path, behaviour: str = "", dims: str = "[-1, 4]", instances: int = 1) -> FakeSession:
    path = folder / "model.fake"
    path.write_text(model_text(behaviour, dims))
    session = get("fake").load(LoadRequest(path, ModelConfig("m"), (Device(),) * instances, {}))
    assert isinstance(session, FakeSession)
    return session


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """What the server logs meanwhile; unlike caplog's, untouched by what other tests have configured."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("demiglace.server")
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


@contextmanager
def serving(
    folder: Path,
    behaviour: str = "",
    *,
    instances: int = 1,
    settings: ModelConfig | None = None,
    clock: HandClock | None = None,
    max_queue_size: int = 1000,
) -> Iterator[tuple[Model, FakeSession, Sheet]]:
    """A model `m` on the fake backend: y = x. Closed at the end, its gate opened first."""
    session = load_fake(folder, behaviour, instances=instances)
    model = Model("m", 1, settings or config(), session, (Device(),) * instances, clock or HandClock(), max_queue_size)
    try:
        yield model, session, Sheet()
    finally:
        session.gate.open()
        model.close()
