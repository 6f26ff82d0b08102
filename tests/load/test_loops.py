"""Closed and open loop on virtual time: what is in flight, and what a latency counts from."""

from __future__ import annotations

import asyncio

import pytest

from tests.load import schedule
from tests.load.loops import ClosedPlan, Tally, Window, closed_loop, open_loop
from tests.load.virtual import VirtualLoop, on_virtual_time

SECOND = 1_000_000_000


class Model:
    """Answers each request after `takes` seconds; holds everything that is in flight while it stalls."""

    def __init__(self, loop: VirtualLoop, takes: float, stall: tuple[float, float] = (0, 0)) -> None:
        self.loop, self.takes, self.stall = loop, takes, stall
        self.in_flight: list[int] = []
        self.most = 0
        self.numbers: list[int] = []

    async def __call__(self, number: int) -> str | None:
        self.numbers.append(number)
        self.in_flight.append(number)
        self.most = max(self.most, len(self.in_flight))
        begin, end = self.stall
        await asyncio.sleep(self.takes)
        if begin <= self.loop.time() < end:
            await asyncio.sleep(end - self.loop.time())
        self.in_flight.remove(number)
        return None


def latencies(window: Window) -> list[float]:
    return [(sample.done - sample.due) / SECOND for sample in window.samples if sample.due >= window.begin]


def run_closed(takes: float, plan: ClosedPlan, stall: tuple[float, float] = (0, 0)) -> tuple[Window, Model]:
    async def main(loop: VirtualLoop) -> tuple[Window, Model]:
        model = Model(loop, takes, stall)
        return await closed_loop(model, plan, loop.nanoseconds, Tally(), asyncio.Event()), model

    return on_virtual_time(main)


def run_open(
    rate: float, seconds: float, takes: float, *, stall: tuple[float, float] = (0, 0)
) -> tuple[Window, Model, VirtualLoop]:
    async def main(loop: VirtualLoop) -> tuple[Window, Model, VirtualLoop]:
        model = Model(loop, takes, stall)
        offsets = schedule.send_times(rate, "constant", duration_s=seconds).tolist()
        duration = round(seconds * SECOND)
        return await open_loop(model, offsets, duration, loop.nanoseconds, Tally(), asyncio.Event()), model, loop

    return on_virtual_time(main)


@pytest.mark.parametrize("in_flight", [1, 3, 32])
def test_a_closed_loop_keeps_exactly_so_many_in_flight(in_flight: int) -> None:
    async def main(loop: VirtualLoop) -> set[int]:
        model, tally, seen = Model(loop, 0.1), Tally(), set()

        async def call(number: int) -> str | None:
            # After the first moment, every other worker is waiting whenever one sends.
            if loop.time() > 0:
                seen.add(tally.in_flight)
            return await model(number)

        await closed_loop(call, ClosedPlan(in_flight, 0, interval=2 * SECOND), loop.nanoseconds, tally, asyncio.Event())
        assert tally.in_flight == 0
        assert model.most == in_flight
        return seen

    # All answers come in one moment here, so the count climbs back step by step; it never passes the limit.
    assert max(on_virtual_time(main)) == in_flight


def test_requests_are_numbered_in_turn() -> None:
    _, model = run_closed(0.1, ClosedPlan(3, 0, count=20))
    assert sorted(model.numbers) == list(range(20))


def test_a_closed_loop_measures_the_steady_state_after_its_warm_up() -> None:
    window, _ = run_closed(0.1, ClosedPlan(4, None, interval=SECOND, warmup=8))
    assert window.begin == pytest.approx(0.2 * SECOND)
    assert window.end - window.begin == pytest.approx(SECOND)
    in_window = [sample for sample in window.samples if window.begin <= sample.done <= window.end]
    # 4 in flight at 0.1 s each; the answers at both edges may count.
    assert 40 <= len(in_window) <= 44
    assert latencies(window) == pytest.approx([0.1] * len(latencies(window)))


def test_the_window_waits_for_as_many_answers_as_are_in_flight() -> None:
    window, _ = run_closed(5.0, ClosedPlan(2, 0, interval=SECOND))
    assert window.end == pytest.approx(5 * SECOND)
    assert len(window.samples) == 2 + 1  # the first of the two to be answered did not yet know of the second


def test_a_count_sends_exactly_so_many() -> None:
    window, model = run_closed(0.1, ClosedPlan(4, 0, count=10))
    assert len(window.samples) == len(model.numbers) == 10
    assert window.end == pytest.approx(0.3 * SECOND)


def test_fewer_requests_than_workers_is_no_hang() -> None:
    window, model = run_closed(0.1, ClosedPlan(8, 0, count=3))
    assert (len(window.samples), model.most) == (3, 3)


def test_a_closed_loop_hides_a_stall_and_an_open_loop_shows_it() -> None:
    """One second of stall in ten: to the closed loop it is one slow request, to users it was a tenth of all of them."""
    closed, _ = run_closed(0.01, ClosedPlan(1, 0, interval=10 * SECOND), stall=(5, 6))
    slow_closed = [time for time in latencies(closed) if time > 0.1]
    opened, _, _ = run_open(100, 10, 0.01, stall=(5, 6))
    slow_open = [time for time in latencies(opened) if time > 0.1]
    assert len(slow_closed) == 1
    assert 85 <= len(slow_open) <= 95
    assert max(slow_open) == pytest.approx(1.0, abs=0.02)


def test_an_open_loop_sends_on_time_however_slow_the_answers() -> None:
    window, model, _ = run_open(10, 2, takes=60)
    assert [sample.sent for sample in window.samples] == [sample.due for sample in window.samples]
    assert model.most == 20
    assert len(window.samples) == 20
    assert window.end - window.begin == 2 * SECOND


def test_a_late_sender_is_told_and_its_lateness_is_latency() -> None:
    """The client stands still for half a second: the requests due meanwhile leave late, and their users waited."""

    async def main(loop: VirtualLoop) -> Window:
        async def call(number: int) -> str | None:
            if number == 5:
                loop.stall(0.5)
            await asyncio.sleep(0.01)
            return None

        offsets = schedule.send_times(10, "constant", duration_s=2).tolist()
        return await open_loop(call, offsets, 2 * SECOND, loop.nanoseconds, Tally(), asyncio.Event())

    window = on_virtual_time(main)
    lags = [round((sample.sent - sample.due) / SECOND, 3) for sample in sorted(window.samples, key=lambda s: s.due)]
    assert lags[:5] == [0] * 5
    assert lags[6:10] == [0.4, 0.3, 0.2, 0.1]
    assert lags[11:] == [0] * 9
    assert max(latencies(window)) >= 0.41


def test_errors_are_samples_too() -> None:
    async def main(loop: VirtualLoop) -> Window:
        async def call(number: int) -> str | None:
            await asyncio.sleep(0.01)
            return "UNAVAILABLE: no" if number % 2 else None

        tally = Tally()
        window = await closed_loop(call, ClosedPlan(2, 0, count=10), loop.nanoseconds, tally, asyncio.Event())
        assert (tally.answered, tally.failed, tally.fraction) == (10, 5, 1.0)
        return window

    assert [sample.error for sample in on_virtual_time(main).samples].count("UNAVAILABLE: no") == 5


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_a_stop_keeps_what_was_answered_and_gives_up_the_rest(kind: str) -> None:
    async def main(loop: VirtualLoop) -> tuple[Window, int]:
        stop, cancelled = asyncio.Event(), 0

        async def call(number: int) -> str | None:
            nonlocal cancelled
            try:
                await asyncio.sleep(0.1 if number < 4 else 3600)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return None

        loop.call_later(2, stop.set)
        if kind == "closed":
            plan = ClosedPlan(4, 0, interval=60 * SECOND)
            return await closed_loop(call, plan, loop.nanoseconds, Tally(), stop), cancelled
        offsets = schedule.send_times(4, "constant", duration_s=60).tolist()
        return await open_loop(call, offsets, 60 * SECOND, loop.nanoseconds, Tally(), stop), cancelled

    window, cancelled = on_virtual_time(main)
    assert len(window.samples) == 4
    assert cancelled == 4
    assert window.end - window.begin == pytest.approx(2 * SECOND)


def test_a_fault_in_the_tool_itself_is_not_swallowed() -> None:
    async def main(loop: VirtualLoop) -> None:
        async def broken(number: int) -> str | None:
            raise ZeroDivisionError

        await closed_loop(broken, ClosedPlan(2, 0, count=4), loop.nanoseconds, Tally(), asyncio.Event())

    with pytest.raises(ZeroDivisionError):
        on_virtual_time(main)
