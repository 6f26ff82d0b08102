"""The two ways to load a server, closed and open loop, over any `call`; no gRPC here and no clock of its own.

Closed loop: N workers, each sends, waits, sends again, so exactly N requests are in flight. Such a client slows down
with its server: while the server stalls, nothing is sent, and the stall counts as N slow requests however long it
lasts. Open loop: requests leave by a schedule fixed beforehand, as those of independent users do. Latency is counted
from the scheduled time, so that neither a stalled server nor a late sender can hide (Gil Tene's "coordinated
omission").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Clock = Callable[[], int]
"""Monotonic nanoseconds."""
Call = Callable[[int], Awaitable[str | None]]
"""Sends the request of that number and waits for its answer; gives the error's text, or None when it succeeded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request; times in nanoseconds of the clock."""

    due: int
    """When the schedule wanted it sent; in a closed loop, when it was sent."""
    sent: int
    done: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Window:
    """What one level gave: all answered requests, and the time span that counts."""

    samples: tuple[Sample, ...]
    """May hold requests that were due before `begin`; their answers count for the throughput only."""
    begin: int
    end: int


@dataclass(slots=True)
class Tally:
    """Live counts for the progress display; owned by the loop that runs, read by anyone on its thread."""

    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    fraction: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    async def send(self, call: Call, number: int, due: int | None, clock: Clock) -> None:
        """A cancelled request leaves no sample: it was given up by the user, not answered."""
        sent = clock()
        self.in_flight += 1
        try:
            error = await call(number)
        finally:
            self.in_flight -= 1
        self.samples.append(Sample(sent if due is None else due, sent, clock(), error))
        self.answered += 1
        self.failed += error is not None


@dataclass(slots=True)
class ClosedPlan:
    """Decides, from the time and the count of answers alone, when measuring begins and when sending ends.

    With an interval, warm-up flows into the measurement without a pause, so that the window sees the steady state
    from its first moment: with 32 in flight at 50 rows/s, starting from rest would lose 0.6 s of answers. The window
    closes when the interval is over and as many requests as are in flight have been answered, so that a slow model is
    not reported on nothing. With a count, exactly so many are sent, and the window closes with the last answer;
    warm-up must be over before.
    """

    in_flight: int
    begin: int | None
    """None until the warm-up is over."""
    interval: int | None = None
    count: int | None = None
    warmup: int = 0
    answered: int = 0
    sent: int = 0
    end: int | None = None

    def may_send(self, now: int) -> bool:
        if self.end is not None:
            return False
        if self.count is not None:
            allowed = self.sent < self.count
        elif self.begin is None or self.interval is None:
            allowed = True
        else:
            allowed = now - self.begin < self.interval or self.answered < self.in_flight
            if not allowed:
                self.end = now
        self.sent += allowed
        return allowed

    def note_answer(self, now: int) -> None:
        self.answered += 1
        if self.begin is None and self.answered >= self.warmup:
            self.begin, self.answered = now, 0
        if self.count is not None and self.answered >= self.count:
            self.end = now

    def fraction(self, now: int) -> float:
        if self.begin is None:
            return 0.0
        if self.count is not None:
            return min(1.0, self.answered / max(1, self.count))
        return min(1.0, (now - self.begin) / (self.interval or 1))


async def closed_loop(call: Call, plan: ClosedPlan, clock: Clock, tally: Tally, stop: asyncio.Event) -> Window:
    """Keep `plan.in_flight` requests in flight until the plan ends; when `stop` is set, give up those in flight."""
    number = 0

    async def worker() -> None:
        nonlocal number
        while plan.may_send(clock()):
            mine, number = number, number + 1
            await tally.send(call, mine, None, clock)
            now = clock()
            plan.note_answer(now)
            tally.fraction = plan.fraction(now)

    started = clock()
    await _until_done_or_stopped([asyncio.create_task(worker()) for _ in range(plan.in_flight)], stop)
    begin = started if plan.begin is None else plan.begin
    return Window(tuple(tally.samples), begin, clock() if plan.end is None else plan.end)


async def open_loop(
    call: Call, offsets: Sequence[int], duration: int, clock: Clock, tally: Tally, stop: asyncio.Event
) -> Window:
    """Send the requests at `offsets` (ns after now), each on its own, however slow the answers; then wait for all
    answers.

    `duration` (ns) is what the throughput is counted over: the span that the schedule covers.
    """
    begin = clock()
    tasks: set[asyncio.Task[None]] = set()

    async def sender() -> None:
        for number, offset in enumerate(offsets):
            due = begin + int(offset)
            # Also when late: a sender that never yields would keep the answers from being read.
            await asyncio.sleep(max(0, due - clock()) / 1e9)
            task = asyncio.create_task(tally.send(call, number, due, clock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            tally.fraction = min(1.0, int(offset) / max(1, duration))

    await _until_done_or_stopped([asyncio.create_task(sender())], stop)
    await _until_done_or_stopped(list(tasks), stop)
    return Window(tuple(tally.samples), begin, min(clock(), begin + duration))


async def _until_done_or_stopped(tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Wait for all tasks; when `stop` is set or we are cancelled, cancel them. An exception in one is raised here."""
    if not tasks:
        return

    async def give_up() -> None:
        await stop.wait()
        for task in tasks:
            task.cancel()

    stopping = asyncio.create_task(give_up())
    try:
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.gather(stopping, *tasks, return_exceptions=True)
