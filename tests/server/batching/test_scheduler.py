"""Threads around the queue: batches form when an instance is free, everybody is answered once, whatever happens."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Barrier, Thread
from threading import enumerate as threads

from protos.model_config import QueuePolicy
from server.backends.base import Device
from server.batching.ordering import Ordering
from server.errors import Cancelled, DeadlineExceeded, Unavailable
from server.model import Model
from server.request import InferRequest, Response, Result
from tests.server.core import MS, HandClock, Sheet, config, load_fake, logged, request, serving


def test_a_batch_is_formed_only_when_an_instance_is_free(tmp_path: Path) -> None:
    with serving(tmp_path, 'gate = "closed"') as (model, session, sheet):
        model.submit(request(0.0), sheet)
        assert session.gate.arrived(1)
        for i in range(1, 6):
            model.submit(request(float(i)), sheet)
        assert model.waiting() == 5
        assert model.pending() == 6
        session.gate.open()
        sheet.wait(6)
        assert [ran.rows for ran in session.ran] == [1, 5]
        assert session.ran[1].first == (1.0, 2.0, 3.0, 4.0, 5.0)
        assert model.drain(10)
        assert model.pending() == 0


def test_several_instances_run_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, 'gate = "closed"', instances=3) as (model, session, sheet):
        for i in range(3):
            model.submit(request(float(i)), sheet)
            assert session.gate.arrived(i + 1)
        assert sorted(ran.instance for ran in session.ran) == [0, 1, 2]
        session.gate.open()
        sheet.wait(3)


def test_an_idle_instance_waits_for_the_delay_to_fill_a_batch(tmp_path: Path) -> None:
    clock = HandClock()
    settings = config(8, max_queue_delay_microseconds=3_600_000_000)
    with serving(tmp_path, settings=settings, clock=clock) as (model, session, sheet):
        for i in range(3):
            model.submit(request(float(i)), sheet)
        clock.advance(3_600_000 * MS)
        model.wake()
        sheet.wait(3)
        assert [ran.rows for ran in session.ran] == [3]


def test_a_batch_that_is_full_goes_before_the_delay(tmp_path: Path) -> None:
    settings = config(2, max_queue_delay_microseconds=3_600_000_000)
    with serving(tmp_path, settings=settings, instances=2) as (model, session, sheet):
        for i in range(6):
            model.submit(request(float(i)), sheet)
        sheet.wait(6)
        assert [ran.rows for ran in session.ran] == [2, 2, 2]


def test_the_delay_ends_by_itself_on_a_real_clock(tmp_path: Path) -> None:
    session = load_fake(tmp_path)
    model = Model("m", 1, config(8, max_queue_delay_microseconds=1000), session, (Device(),), time.monotonic_ns)
    sheet = Sheet()
    model.submit(request(1.0), sheet)
    sheet.wait(1)
    model.close()


def test_expired_requests_are_answered_and_never_run(tmp_path: Path) -> None:
    clock = HandClock()
    policy = QueuePolicy(default_timeout_microseconds=1000)
    with serving(tmp_path, 'gate = "closed"', settings=config(8, default_queue_policy=policy), clock=clock) as (
        model,
        session,
        sheet,
    ):
        model.submit(request(0.0), sheet)
        assert session.gate.arrived(1)
        late, due = request(1.0), request(2.0, deadline_ns=clock() + MS // 2)
        model.submit(late, sheet)
        model.submit(due, sheet)
        clock.advance(2 * MS)
        fresh = request(3.0)
        model.submit(fresh, sheet)
        session.gate.open()
        sheet.wait(4)
        assert isinstance(sheet.results[late], Unavailable)
        assert isinstance(sheet.results[due], DeadlineExceeded)
        assert sheet.values(fresh) == [[3.0] * 4]
        assert [ran.first for ran in session.ran] == [(0.0,), (3.0,)]
        assert model.statistics().failures == {"REJECTED": 1, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}


def test_expired_requests_make_room_in_a_full_queue(tmp_path: Path) -> None:
    clock = HandClock()
    with serving(tmp_path, 'gate = "closed"', clock=clock, max_queue_size=1) as (model, session, sheet):
        model.submit(request(0.0), sheet)
        assert session.gate.arrived(1)
        late = request(1.0, deadline_ns=clock() + 1)
        model.submit(late, sheet)
        clock.advance(1)
        fresh, refused = request(2.0), request(3.0)
        model.submit(fresh, sheet)
        model.submit(refused, sheet)
        assert isinstance(sheet.results[late], DeadlineExceeded), "answered as soon as it is found, not at its turn"
        assert str(sheet.results[refused]) == "[request id: <id_unknown>] Exceeds maximum queue size"
        session.gate.open()
        sheet.wait(4)
        assert sheet.values(fresh) == [[2.0] * 4]


def test_a_cancelled_request_is_answered_at_once_and_its_mates_run(tmp_path: Path) -> None:
    with serving(tmp_path, 'gate = "closed"') as (model, session, sheet):
        running, gone, mate = request(0.0), request(1.0), request(2.0)
        model.submit(running, sheet)
        assert session.gate.arrived(1)
        model.submit(gone, sheet)
        model.submit(mate, sheet)
        model.cancel(gone)
        assert isinstance(sheet.results[gone], Cancelled)
        model.cancel(running)
        session.gate.open()
        sheet.wait(3)
        assert isinstance(sheet.results[running], Response), "too late: answered as if nothing had happened"
        assert [ran.first for ran in session.ran] == [(0.0,), (2.0,)]
        model.cancel(mate)


def test_a_cancel_after_the_deadline_says_so(tmp_path: Path) -> None:
    clock = HandClock()
    with serving(tmp_path, 'gate = "closed"', clock=clock) as (model, session, sheet):
        model.submit(request(0.0), sheet)
        assert session.gate.arrived(1)
        late = request(1.0, deadline_ns=clock() + 5)
        model.submit(late, sheet)
        clock.advance(5)
        model.cancel(late)
        assert isinstance(sheet.results[late], DeadlineExceeded)


def test_cancelled_or_overdue_before_submit_costs_nothing(tmp_path: Path) -> None:
    clock = HandClock()
    with serving(tmp_path, clock=clock) as (model, session, sheet):
        gone, late = request(1.0, cancelled=True), request(2.0, deadline_ns=clock())
        model.submit(gone, sheet)
        model.submit(late, sheet)
        assert isinstance(sheet.results[gone], Cancelled)
        assert isinstance(sheet.results[late], DeadlineExceeded)
        assert not session.ran


def test_answers_keep_arrival_order_whichever_instance_is_faster(tmp_path: Path) -> None:
    settings = config(1, preserve_ordering=True)
    with serving(tmp_path, 'gate = "closed"', instances=4, settings=settings) as (model, session, sheet):
        requests = [request(float(i)) for i in range(200)]
        for made in requests:
            model.submit(made, sheet)
        assert session.gate.arrived(4)
        session.gate.open()
        sheet.wait(200)
        assert sheet.order == requests


def test_ordered_answers_wait_for_the_first(tmp_path: Path) -> None:
    sent: list[InferRequest] = []
    ordering = Ordering(lambda answers: sent.extend(request for request, _ in answers))
    first, second, third = (request(float(i)) for i in range(3))
    ordering.open([first, second])
    ordering.open([third])
    ordering.release([(third, Response(())), (second, Response(()))])
    assert sent == []
    ordering.release([(first, Response(()))])
    assert sent == [first, second, third]


def test_drain_refuses_new_requests_and_finishes_accepted_ones(tmp_path: Path) -> None:
    with serving(tmp_path, 'gate = "closed"') as (model, session, sheet):
        running, queued, refused = request(1.0), request(2.0), request(3.0)
        model.submit(running, sheet)
        assert session.gate.arrived(1)
        model.submit(queued, sheet)
        assert not model.drain(0.0)
        model.submit(refused, sheet)
        assert isinstance(sheet.results[refused], Unavailable)
        assert "stopped accepting new inference requests" in str(sheet.results[refused])
        session.gate.open()
        assert model.drain(20)
        assert sheet.values(running) == [[1.0] * 4]
        assert sheet.values(queued) == [[2.0] * 4]


def test_close_answers_the_queued_finishes_the_running_and_frees_the_session(tmp_path: Path) -> None:
    with serving(tmp_path, 'gate = "closed"', instances=2) as (model, session, sheet):
        running = [request(1.0), request(2.0)]
        for i, made in enumerate(running):
            model.submit(made, sheet)
            assert session.gate.arrived(i + 1)
        queued = request(3.0)
        model.submit(queued, sheet)
        closer = Thread(target=model.close)
        closer.start()
        sheet.wait(1)
        assert isinstance(sheet.results[queued], Unavailable)
        assert not session.closed
        session.gate.open()
        closer.join(20)
        assert session.closed
        assert all(isinstance(sheet.results[made], Response) for made in running)
        after = request(4.0)
        model.submit(after, sheet)
        assert isinstance(sheet.results[after], Unavailable)
        assert not [thread for thread in threads() if thread.name.startswith("m/1#")]


def test_close_gives_up_on_a_run_that_does_not_end(tmp_path: Path) -> None:
    with logged() as records, serving(tmp_path, 'gate = "closed"') as (model, session, sheet):
        model.submit(request(1.0), sheet)
        assert session.gate.arrived(1)
        model.close(timeout=0.0)
        assert not session.closed, "the run still uses it"
        assert [record.getMessage() for record in records] == ["still running, its memory stays taken"]


def test_an_on_done_that_raises_harms_nobody(tmp_path: Path) -> None:
    def broken(_: InferRequest, __: Result) -> None:
        raise RuntimeError("broken front end")

    with logged() as records, serving(tmp_path, 'gate = "closed"') as (model, session, sheet):
        model.submit(request(0.0), broken)
        assert session.gate.arrived(1)
        model.submit(request(1.0), broken)
        good = request(2.0)
        model.submit(good, sheet)
        session.gate.open()
        sheet.wait(1)
        assert sheet.values(good) == [[2.0] * 4]
        assert model.drain(20)
    assert [record.getMessage() for record in records] == ["an on_done raised"] * 2


def test_a_storm_from_many_threads_is_answered_exactly_once_each(tmp_path: Path) -> None:
    """5 000 requests from 8 threads, 1 % poison, some cancelled, some overdue; the others get their own rows."""
    clock = HandClock()
    with serving(tmp_path, "fail_on = 13.0", instances=3, clock=clock, max_queue_size=0) as (model, _, sheet):
        barrier = Barrier(8)
        sent: list[list[tuple[str, InferRequest]]] = [[] for _ in range(8)]

        def client(number: int) -> None:
            barrier.wait()
            for i in range(625):
                kind = "poison" if i % 100 == 7 else "overdue" if i % 50 == 3 else "cancel" if i % 25 == 9 else "good"
                value = 13.0 if kind == "poison" else 100.0 + number * 1000 + i
                made = request(*[value] * (i % 3 + 1), deadline_ns=1 if kind == "overdue" else None)
                sent[number].append((kind, made))
                model.submit(made, sheet)
                if kind == "cancel":
                    model.cancel(made)

        clients = [Thread(target=client, args=(number,)) for number in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        sheet.wait(5000)
        for kind, made in (pair for pairs in sent for pair in pairs):
            result = sheet.results[made]
            if kind == "good" or (kind == "cancel" and isinstance(result, Response)):
                assert sheet.values(made) == made.inputs[0].array.tolist()
            else:
                assert not isinstance(result, Response)
        assert model.drain(20)
        statistics = model.statistics()
        assert statistics.success.count + statistics.fail.count == 5000
        assert sum(statistics.failures.values()) == statistics.fail.count
