"""What becomes of a batch: whose rows go where, and who pays when a run fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.backends.base import Arrays, BackendError, Batch
from server.backends.fake import FakeSession
from server.batching.collate import Collator
from server.batching.runner import Runner, extra_runs_allowed
from server.errors import Cancelled, DeadlineExceeded, Internal
from server.request import Answers, InferRequest, Response, Result
from server.statistics import Statistics
from tests.server.core import HandClock, config, load_fake, logged, request

POISON = 13.0


def ready(*values: float, **fields: object) -> InferRequest:
    made = request(*values, **fields)  # type: ignore[arg-type]
    made.rows = len(values)
    return made


class Bench:
    """A runner without threads: `run` gives the results in the order of the requests."""

    def __init__(self, session: FakeSession, max_batch_size: int = 64) -> None:
        self.session = session
        self.statistics = Statistics()
        collator = Collator("m", config(max_batch_size))
        self.runner = Runner("m", session, collator, HandClock(), self.statistics)

    def run(self, requests: list[InferRequest]) -> list[Result]:
        answers: Answers = []
        self.runner.run(0, requests, answers.extend)
        assert len(answers) == len(requests), "exactly one answer each"
        found = dict(answers)
        return [found[request] for request in requests]


def rows_of(result: Result) -> list[float]:
    assert isinstance(result, Response), result
    return [float(row[0]) for row in result.outputs[0].array]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fake")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_each_request_gets_its_own_rows_back(folder: Path, sizes: list[int]) -> None:
    bench = Bench(load_fake(folder, "multiply = 3"))
    values = iter(range(sum(sizes)))
    requests = [ready(*(next(values) for _ in range(size))) for size in sizes]
    for made, result in zip(requests, bench.run(requests), strict=True):
        assert rows_of(result) == [3.0 * float(row[0]) for row in made.inputs[0].array]
    assert len(bench.session.ran) == 1


@given(number=st.integers(1, 40), guilty=st.data())
@settings(deadline=None, max_examples=80)
def test_one_guilty_request_fails_alone_within_the_bound(folder: Path, number: int, guilty: st.DataObject) -> None:
    bad = guilty.draw(st.integers(0, number - 1))
    bench = Bench(load_fake(folder, f"fail_on = {POISON}"))
    requests = [ready(POISON if i == bad else float(100 + i)) for i in range(number)]
    results = bench.run(requests)
    for i, result in enumerate(results):
        if i == bad:
            assert isinstance(result, Internal)
            assert str(result) == f"[request id: <id_unknown>] a row holds {POISON}"
        else:
            assert rows_of(result) == [100.0 + i]
    statistics = bench.statistics.snapshot()
    assert statistics.retries == len(bench.session.ran) - 1
    assert statistics.retries <= 2 * (number - 1).bit_length() < extra_runs_allowed(number)
    assert statistics.success.count == number - 1
    assert statistics.failures["BACKEND"] == 1


@given(st.lists(st.sampled_from([POISON, 1.0, 2.0, 3.0]), min_size=2, max_size=32))
@settings(deadline=None, max_examples=80)
def test_innocents_are_served_however_many_are_guilty(folder: Path, values: list[float]) -> None:
    bench = Bench(load_fake(folder, f"fail_on = {POISON}"))
    results = bench.run([ready(value) for value in values])
    ran = len(bench.session.ran)
    assert ran <= 2 * len(values)
    if ran > extra_runs_allowed(len(values)) + 1 or POISON not in values:
        assert [isinstance(r, Internal) for r in results] == [value == POISON for value in values]
    for value, result in zip(values, results, strict=True):
        assert isinstance(result, Internal) if value == POISON else True


def test_a_broken_model_is_not_asked_for_every_row(folder: Path) -> None:
    bench = Bench(load_fake(folder, "max_rows = 0"))
    results = bench.run([ready(float(i)) for i in range(32)])
    assert all(isinstance(result, Internal) for result in results)
    assert len(bench.session.ran) == 1 + extra_runs_allowed(32) == 12


def test_who_has_gone_meanwhile_is_not_run_again(folder: Path) -> None:
    bench = Bench(load_fake(folder, f"fail_on = {POISON}"))
    late, gone, good = ready(1.0, deadline_ns=1), ready(2.0, cancelled=True), ready(3.0)
    results = bench.run([late, gone, good, ready(POISON)])
    assert [type(result) for result in results] == [DeadlineExceeded, Cancelled, Response, Internal]
    assert [ran.first for ran in bench.session.ran] == [(1.0, 2.0, 3.0, POISON), (3.0, POISON), (3.0,), (POISON,)]
    assert bench.statistics.snapshot().failures["CANCELED"] == 2


def test_a_batch_too_large_for_the_device_is_served_in_parts(folder: Path) -> None:
    bench = Bench(load_fake(folder, "max_rows = 8"))
    results = bench.run([ready(float(i)) for i in range(32)])
    assert [rows_of(result) for result in results] == [[float(i)] for i in range(32)]
    assert [ran.rows for ran in bench.session.ran] == [32, 16, 16, 8, 8, 8, 8]


def test_an_exception_of_any_kind_becomes_internal_and_is_logged_once(folder: Path) -> None:
    bench = Bench(load_fake(folder, f"crash_on = {POISON}"))
    with logged() as records:
        for _ in range(3):
            good, bad = bench.run([ready(1.0), ready(POISON, id="b")])
    assert rows_of(good) == [1.0]
    assert isinstance(bad, Internal)
    assert str(bad) == "[request id: b] model 'm' failed with ZeroDivisionError"
    assert len([record for record in records if record.exc_info]) == 1
    assert len(records) <= 2


def test_a_model_that_returns_too_few_rows_is_internal_and_not_run_again(folder: Path) -> None:
    bench = Bench(load_fake(folder, f"drop_row_on = {POISON}"))
    results = bench.run([ready(1.0), ready(POISON), ready(2.0, 3.0)])
    assert len(bench.session.ran) == 1
    text = "model 'm' returned 3 rows of output 'y' for a batch of 4"
    assert [str(result) for result in results] == [f"[request id: <id_unknown>] {text}"] * 3


class Stub:
    """A session that returns what it is told to."""

    def __init__(self, arrays: Arrays | BaseException) -> None:
        self.arrays = arrays

    def run(self, instance: int, batch: Batch) -> Arrays:
        if isinstance(self.arrays, BaseException):
            raise self.arrays
        return self.arrays


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "returned no output 'y'"),
        ({"y": np.zeros((1, 4), np.float64)}, "returned output 'y' as float64, its configuration says FP32"),
        ({"y": np.float32(1.0).reshape(())}, "returned 0 rows of output 'y' for a batch of 1"),
        (SystemExit(3), "failed with SystemExit"),
        (BackendError("no memory"), "no memory"),
    ],
)
def test_a_session_that_breaks_its_word_is_internal(folder: Path, arrays: Arrays | BaseException, text: str) -> None:
    bench = Bench(load_fake(folder))
    bench.runner._session = Stub(arrays)  # type: ignore[assignment]
    (result,) = bench.run([ready(1.0)])
    assert isinstance(result, Internal)
    assert text in str(result)


def test_only_outputs_that_somebody_asked_for_are_fetched(folder: Path) -> None:
    bench = Bench(load_fake(folder))
    (result,) = bench.run([ready(1.0, outputs=["y"])])
    assert isinstance(result, Response)
    assert [tensor.name for tensor in result.outputs] == ["y"]
