"""Runs within `release` and in threads together, under load: one answer each, and no instance is entered twice."""

from __future__ import annotations

import random
from pathlib import Path
from threading import Barrier, Lock, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.model_config import ModelIO
from server.backends.base import Arrays, Batch, Device, Session
from server.model import Model
from server.request import InferRequest, Response
from tests.server.batching.test_release import POISON, STEADY, quick
from tests.server.core import MS, HandClock, Sheet, config, load_fake, request, serving


class Guarded(Session):
    """Fails when an instance is entered while it is running."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._inside = [Lock() for _ in range(3)]
        self.steady = True

    @property
    def io(self) -> ModelIO:
        return self._session.io

    def run(self, instance: int, batch: Batch) -> Arrays:
        assert self._inside[instance].acquire(blocking=False), f"instance {instance} is running"
        try:
            return self._session.run(instance, batch)
        finally:
            self._inside[instance].release()

    def close(self) -> None:
        self._session.close()


@pytest.mark.parametrize("ordered", [False, True])
def test_a_storm_of_held_and_single_requests_is_answered_exactly_once_each(tmp_path: Path, ordered: bool) -> None:
    """4,000 requests from 4 threads: quick kinds, slow ones, poison, some cancelled, some overdue."""
    fake = load_fake(tmp_path, f"fail_on = {POISON}", instances=3)
    model = Model(
        "m", 1, config(8, preserve_ordering=ordered), Guarded(fake), (Device(),) * 3, HandClock(), max_queue_size=0
    )
    sheet = Sheet()
    for rows in (1, 2, 8):
        quick(model, rows)
    barrier = Barrier(4)
    sent: list[list[tuple[str, InferRequest]]] = [[] for _ in range(4)]

    def client(number: int) -> None:
        chance = random.Random(number)
        barrier.wait()
        for i in range(1000):
            kind = chance.choices(["good", "poison", "overdue", "cancel"], [90, 1, 3, 6])[0]
            value = POISON if kind == "poison" else 100.0 + number * 1000 + i
            made = request(*[value] * chance.randint(1, 3), deadline_ns=1 if kind == "overdue" else None)
            sent[number].append((kind, made))
            model.submit(made, sheet, hold=number != 3)
            if kind == "cancel":
                model.cancel(made)
            if chance.random() < 0.2:
                model.release()
        model.release()

    clients = [Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    sheet.wait(4000)
    assert model.drain(20)
    for kind, made in (pair for pairs in sent for pair in pairs):
        result = sheet.results[made]
        if kind == "good" or (kind == "cancel" and isinstance(result, Response)):
            assert sheet.values(made) == made.inputs[0].array.tolist()
        else:
            assert not isinstance(result, Response)
    counted = model.statistics()
    assert counted.success.count + counted.fail.count == 4000
    assert counted.failures["OTHER"] == 0
    model.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 4)),
        st.tuples(st.just("hold"), st.integers(1, 4)),
        st.tuples(st.just("release"), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("later"), st.integers(1, 3)),
    ),
    max_size=30,
)


@given(steps=STEPS, quick_rows=st.sets(st.integers(1, 8)), delay=st.sampled_from([0, 2000]))
@settings(deadline=None, max_examples=60)
def test_whatever_the_order_of_calls_everybody_is_answered_in_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], quick_rows: set[int], delay: int
) -> None:
    clock = HandClock()
    folder = tmp_path_factory.mktemp("m")
    with serving(folder, STEADY, settings=config(8, max_queue_delay_microseconds=delay), clock=clock) as (model, _, s):
        for rows in quick_rows:
            quick(model, rows)
        sent: list[InferRequest] = []
        for what, number in steps:
            if what in ("submit", "hold"):
                sent.append(request(*[float(len(sent))] * number))
                model.submit(sent[-1], s, hold=what == "hold")
            elif what == "release":
                model.release()
            elif what == "cancel" and number < len(sent):
                model.cancel(sent[number])
            elif what == "later":
                clock.advance(number * MS)
                model.wake()
        model.release()
        clock.advance(10 * MS)
        model.wake()
        s.wait(len(sent))
        assert model.drain(20)
        answered = [each for each in s.order if isinstance(s.results[each], Response)]
        assert answered == [each for each in sent if each in answered], "one instance: in order"
        assert all(s.values(each) == each.inputs[0].array.tolist() for each in answered)
