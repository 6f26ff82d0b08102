"""Runs in the thread that says `release`: quick ones are made there, all others by threads, and everybody is answered.

Which kinds are quick is told to the pace by hand where a test depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, get_ident
from typing import Any

import pytest

from server.backends.base import Device
from server.errors import Internal, ServerError, Stopping
from server.model import Model
from server.request import InferRequest, Response, Result
from tests.server.core import MS, HandClock, Sheet, config, load_fake, request, serving

STEADY = "steady = true\n"
US = 1000
POISON = 13.0


def quick(model: Model, rows: int = 1, group: object = None, us: int = 5) -> None:
    for _ in range(2):
        model._runner.pace.measured(group, rows, us * US)


class Threads(Sheet):
    """A sheet that knows which thread brought each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.by: dict[InferRequest, int] = {}

    def __call__(self, request: InferRequest, result: Result) -> None:
        self.by[request] = get_ident()
        super().__call__(request, result)

    def here(self, request: InferRequest) -> bool:
        return self.by[request] == get_ident()


def hold(model: Model, sheet: Sheet, *requests: InferRequest) -> list[InferRequest]:
    for made in requests:
        model.submit(made, sheet, hold=True)
    return list(requests)


def test_a_quick_batch_is_run_and_answered_within_release(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY) as (model, session, _):
        sheet = Threads()
        quick(model, 5)
        made = hold(model, sheet, *(request(float(i)) for i in range(5)))
        assert not sheet.order, "held"
        model.release()
        assert sheet.order == made
        assert all(sheet.here(each) for each in made)
        assert [ran.rows for ran in session.ran] == [5]
        assert [sheet.values(each) for each in made] == [[[float(i)] * 4] for i in range(5)]
        assert model.pending() == model.waiting() == 0


def test_a_kind_that_was_never_measured_goes_to_a_thread_and_is_measured_there(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY) as (model, _, _):
        sheet = Threads()
        quick(model, 1)
        for number in (1, 2):
            (made,) = hold(model, sheet, request(1.0, 2.0))
            assert model._runner.pace.expected(None, 2) == float("inf")
            model.release()
            sheet.wait(number)
            assert not sheet.here(made)
        assert model._runner.pace.expected(None, 2) < float("inf")


@pytest.mark.parametrize("behaviour", ["", STEADY])
def test_without_any_quick_kind_nothing_is_run_within_release(tmp_path: Path, behaviour: str) -> None:
    with serving(tmp_path, behaviour) as (model, _, _):
        sheet = Threads()
        if behaviour:
            quick(model, 1, us=1_000_000)
        (first,) = hold(model, sheet, request(1.0))
        model.release()
        sheet.wait(1)
        assert not sheet.here(first)


def test_a_session_whose_time_depends_on_values_is_never_measured(tmp_path: Path) -> None:
    with serving(tmp_path) as (model, _, sheet):
        model.submit(request(1.0), sheet)
        sheet.wait(1)
        assert not model._runner.pace.has_quick


def test_a_giant_among_quick_ones_does_not_stop_the_front_end(tmp_path: Path) -> None:
    session = load_fake(tmp_path, STEADY, dims="[-1, -1]")
    model = Model("m", 1, config(8, dims=(-1,)), session, (Device(),), HandClock())
    sheet = Threads()
    quick(model, 1, ((4,),))
    small, giant, last = hold(model, sheet, request(1.0), request(2.0, width=50_000), request(3.0))
    model.release()
    sheet.wait(3)
    assert sheet.here(small)
    assert not sheet.here(giant)
    assert sheet.order == [small, giant, last]
    model.close()


def test_what_is_waiting_decides_how_long_release_may_take(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY, settings=config(2)) as (model, _, _):
        sheet = Threads()
        quick(model, 1)
        quick(model, 2, us=2000)
        made = hold(model, sheet, *(request(float(i)) for i in range(100)))  # may take 2.15 ms together
        model.release()
        assert sheet.here(made[0])
        sheet.wait(100)
        assert sheet.order == made
        assert not sheet.here(made[2]), "its run is expected to take more than what is left"


def test_the_queue_delay_is_kept_by_a_thread_that_watches_the_time(tmp_path: Path) -> None:
    clock = HandClock()
    patient = config(8, max_queue_delay_microseconds=3_600_000_000)
    with serving(tmp_path, STEADY, settings=patient, clock=clock) as (model, session, sheet):
        quick(model, 3)
        for i in range(3):
            hold(model, sheet, request(float(i)))
            model.release()
        assert model.waiting() == 3
        clock.advance(3_600_000 * MS)
        model.wake()
        sheet.wait(3)
        assert [ran.rows for ran in session.ran] == [3]


def test_the_queue_delay_ends_by_itself_after_a_release(tmp_path: Path) -> None:
    patient = config(8, max_queue_delay_microseconds=1000)
    model = Model("m", 1, patient, load_fake(tmp_path, STEADY), (Device(),), time.monotonic_ns)
    sheet = Sheet()
    quick(model, 1)
    hold(model, sheet, request(1.0))
    model.release()
    sheet.wait(1)
    model.close()


def test_a_full_batch_goes_within_release_before_the_delay(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY, settings=config(2, max_queue_delay_microseconds=3_600_000_000)) as (model, _, _):
        sheet = Threads()
        quick(model, 2)
        made = hold(model, sheet, request(1.0), request(2.0))
        model.release()
        assert all(sheet.here(each) for each in made)


@pytest.mark.parametrize("held", [True, False])
def test_an_answer_may_submit_and_release_again(tmp_path: Path, held: bool) -> None:
    with serving(tmp_path, STEADY, instances=2) as (model, _, sheet):
        quick(model, 1)
        left = 200

        def again(request_: InferRequest, result: Result) -> None:
            nonlocal left
            sheet(request_, result)
            if left:
                left -= 1
                model.submit(request(float(left)), again, hold=held)
                model.release()

        model.submit(request(1.0), again, hold=True)
        model.release()
        sheet.wait(201)
        assert model.drain(20)


def test_a_guilty_request_is_found_within_release_too(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY + f"fail_on = {POISON}") as (model, session, _):
        sheet = Threads()
        quick(model, 8)
        made = hold(model, sheet, *(request(POISON if i == 5 else float(i)) for i in range(8)))
        model.release()
        assert [isinstance(sheet.results[each], Internal) for each in made] == [i == 5 for i in range(8)]
        assert all(sheet.here(each) for each in made)
        assert len(session.ran) == 1 + model.statistics().retries


@pytest.mark.parametrize("trick", [f"crash_on = {POISON}", f"drop_row_on = {POISON}"])
def test_a_run_that_breaks_within_release_leaves_the_model_working(tmp_path: Path, trick: str) -> None:
    with serving(tmp_path, STEADY + trick) as (model, _, sheet):
        quick(model, 1)
        for value, kind in ((1.0, Response), (POISON, Internal), (2.0, Response)):
            (made,) = hold(model, sheet, request(value))
            model.release()
            sheet.wait(len(sheet.order) + (made not in sheet.results))
            assert isinstance(sheet.results[made], kind)


def test_an_on_done_that_raises_within_release_harms_nobody(tmp_path: Path) -> None:
    def broken(_: InferRequest, __: Result) -> None:
        raise RuntimeError("broken front end")

    with serving(tmp_path, STEADY) as (model, _, sheet):
        quick(model, 2)
        model.submit(request(0.0), broken, hold=True)
        (good,) = hold(model, sheet, request(1.0))
        model.release()
        assert sheet.values(good) == [[1.0] * 4]


def test_overdue_and_cancelled_ones_are_answered_by_release_and_not_run(tmp_path: Path) -> None:
    clock = HandClock()
    with serving(tmp_path, STEADY, clock=clock) as (model, session, sheet):
        quick(model, 1)
        late, good = hold(model, sheet, request(1.0, deadline_ns=clock() + 1), request(2.0))
        gone, _ = hold(model, sheet, request(3.0), request(4.0))
        model.cancel(gone)
        clock.advance(1)
        model.release()
        sheet.wait(4)
        assert sheet.order[0] is gone
        assert isinstance(sheet.results[late], ServerError)
        assert sheet.values(good) == [[2.0] * 4]
        assert [value for ran in session.ran for value in ran.first] == [2.0, 4.0]


@contextmanager
def releasing(model: Model, session: Any, sheet: Sheet, made: InferRequest) -> Iterator[Thread]:
    """Another thread is inside `release`, its run held at the gate."""
    quick(model, 1)
    model.submit(made, sheet, hold=True)
    thread = Thread(target=model.release)
    thread.start()
    assert session.gate.arrived(1)
    yield thread
    session.gate.open()
    thread.join(20)
    assert not thread.is_alive()


def test_what_comes_during_a_run_within_release_is_taken_when_it_ends(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY + 'gate = "closed"') as (model, session, sheet):
        with releasing(model, session, sheet, request(0.0)):
            hold(model, sheet, request(1.0), request(2.0))
            model.release()  # returns at once, though the only instance is taken
            assert model.waiting() == 2
        sheet.wait(3)
        assert [ran.rows for ran in session.ran] == [1, 2]


def test_drain_waits_for_a_run_within_release(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY + 'gate = "closed"') as (model, session, sheet):
        made = request(0.0)
        with releasing(model, session, sheet, made):
            assert not model.drain(0.0)
        assert model.drain(20)
        assert isinstance(sheet.results[made], Response)


def test_close_waits_for_a_run_within_release(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY + 'gate = "closed"') as (model, session, sheet):
        made, queued = request(0.0), request(1.0)
        with releasing(model, session, sheet, made):
            hold(model, sheet, queued)
            closer = Thread(target=model.close)
            closer.start()
            sheet.wait(1)
            assert isinstance(sheet.results[queued], Stopping)
            assert not session.closed
        closer.join(20)
        assert session.closed
        assert isinstance(sheet.results[made], Response)


def test_close_gives_up_on_a_run_within_release_that_does_not_end(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY + 'gate = "closed"') as (model, session, sheet):
        running = releasing(model, session, sheet, request(0.0))
        with running:
            model.close(timeout=0.0)
            assert not session.closed, "the run still uses it"


def test_an_answer_within_release_may_close_the_model(tmp_path: Path) -> None:
    with serving(tmp_path, STEADY) as (model, session, _):
        quick(model, 1)
        done: list[Result] = []

        def close(_: InferRequest, result: Result) -> None:
            model.close()
            done.append(result)

        model.submit(request(1.0), close, hold=True)
        model.release()
        assert isinstance(done[0], Response)
        assert session.closed
