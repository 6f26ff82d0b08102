"""A request that finds its model being closed goes to the successor once, or is refused; it is always answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from protos.wire import service
from server.catalog import Catalog
from server.errors import NotFound, ServerError, Stopping
from server.model import Model
from server.rpc.call import Deferred
from server.rpc.service import Service
from tests.server.harness import catalog_of, write_entry

PATH = "/inference.GRPCInferenceService/ModelInfer"


class Given:
    """A catalog that answers each look-up with what the test has prepared."""

    def __init__(self, *answers: Model | ServerError) -> None:
        self._answers = list(answers)

    def model(self, name: str, version: str = "") -> Model:
        found = self._answers.pop(0)
        if isinstance(found, ServerError):
            raise found
        return found


class Recorded:
    """A call that keeps what it was completed with."""

    deadline_ns = None

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answers: list[Callable[[], bytes]] = []

    def complete(self, answer: Callable[[], bytes]) -> None:
        self.answers.append(answer)
        self.done.set()

    def on_cancel(self, action: Callable[[], None]) -> None: ...


def infer(*answers: Model | ServerError) -> bytes:
    message = service.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(np.zeros((1, 4), np.float32).tobytes())
    route = Service(cast(Catalog, Given(*answers)), "triton", lambda: 1).routes()[PATH]
    assert isinstance(route, Deferred)
    call = Recorded()
    route.run(message.SerializeToString(), cast(Any, call))
    assert call.done.wait(10)
    assert len(call.answers) == 1
    return call.answers[0]()


def closed_and_live(tmp_path: Path, then: Callable[[Model, Model], None]) -> None:
    write_entry(tmp_path, constant=1)
    with catalog_of(tmp_path, mode="explicit", start=("m",)) as catalog:
        old = catalog.model("m")
        old.close()
        write_entry(tmp_path, version=2, constant=2)
        catalog.load("m")
        then(old, catalog.model("m"))


def test_a_request_for_a_closing_model_is_answered_by_its_successor(tmp_path: Path) -> None:
    def check(old: Model, new: Model) -> None:
        answer = service.ModelInferResponse.FromString(infer(old, new))
        assert answer.model_version == "2"
        assert np.frombuffer(answer.raw_output_contents[0], np.float32)[0] == 2

    closed_and_live(tmp_path, check)


def test_without_a_successor_it_is_refused(tmp_path: Path) -> None:
    def check(old: Model, new: Model) -> None:
        for second in (old, NotFound("unloaded meanwhile")):
            with pytest.raises(Stopping, match="Server is stopping"):
                infer(old, second)

    closed_and_live(tmp_path, check)
