"""The queue against a second, slow implementation of the same rules, under random histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protos.model_config import DynamicBatching, QueuePolicy
from server.batching.padding import Bucket
from server.batching.queue import Queue
from server.errors import DeadlineExceeded, ServerError, Unavailable
from server.request import InferRequest
from tests.server.core import waiting

POLICIES = st.builds(
    QueuePolicy,
    timeout_action=st.sampled_from(["REJECT", "DELAY"]),
    default_timeout_microseconds=st.sampled_from([0, 0, 5, 20]),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.sampled_from([0, 0, 3]),
)


@dataclass
class Waiter:
    request: InferRequest
    level: int
    arrival: int
    pushed_ns: int
    timeout_ns: int | None
    delayed_at: tuple[int, int] | None = None
    """(when it was due, arrival): the order among the delayed."""


@dataclass
class Oracle:
    """All waiting requests in one list, searched whole every time."""

    max_rows: int
    batching: DynamicBatching
    waiters: list[Waiter] = field(default_factory=list)

    def policy(self, level: int) -> QueuePolicy:
        return self.batching.priority_queue_policy.get(level, self.batching.default_queue_policy)

    def level(self, priority: int) -> int:
        return priority if 1 <= priority <= self.batching.priority_levels else self.batching.default_priority_level

    def is_full(self, level: int) -> bool:
        limit = self.policy(level).max_queue_size or 6
        return sum(w.level == level for w in self.waiters) >= limit

    def timeout(self, request: InferRequest, level: int) -> int | None:
        policy = self.policy(level)
        candidates = [policy.default_timeout_microseconds]
        if policy.allow_timeout_override:
            candidates.append(request.timeout_us)
        return min((c * 1000 for c in candidates if c), default=None)

    def expire(self, now: int) -> dict[InferRequest, type[ServerError]]:
        dropped: dict[InferRequest, type[ServerError]] = {}
        for w in list(self.waiters):
            due = None if w.timeout_ns is None else w.pushed_ns + w.timeout_ns
            if w.request.deadline_ns is not None and w.request.deadline_ns <= now:
                dropped[w.request] = DeadlineExceeded
                self.waiters.remove(w)
            elif due is not None and due <= now and w.delayed_at is None:
                if self.policy(w.level).timeout_action == "DELAY":
                    w.delayed_at = (due, w.arrival)
                else:
                    dropped[w.request] = Unavailable
                    self.waiters.remove(w)
        return dropped

    def order(self) -> list[Waiter]:
        return sorted(self.waiters, key=lambda w: (w.level, w.delayed_at is not None, w.delayed_at or (0, w.arrival)))

    def batch(self, now: int) -> list[InferRequest]:
        """What must go now."""
        prefix: list[InferRequest] = []
        order = [w.request for w in self.order()]
        others = 0
        if order and isinstance(order[0].group, Bucket) and not self.batching.preserve_ordering:
            same = [request for request in order if request.group == order[0].group]
            order, others = same, len(order) - len(same)
        for request in order:
            rows = sum(r.rows for r in prefix) + request.rows
            if prefix and (rows > self.max_rows or request.group != prefix[0].group):
                break
            prefix.append(request)
        sizes = set(self.batching.preferred_batch_size) or {self.max_rows}
        for end in range(len(prefix), 0, -1):
            if sum(r.rows for r in prefix[:end]) in sizes:
                return prefix[:end]
        if not prefix:
            return []
        cannot_grow = others or len(prefix) < len(order) or sum(r.rows for r in prefix) >= max(sizes)
        delay_ns = self.batching.max_queue_delay_microseconds * 1000
        overdue = now - min(r.queued_ns for r in prefix) >= delay_ns
        return prefix if cannot_grow or overdue else []


class QueueMachine(RuleBasedStateMachine):
    @initialize(
        max_rows=st.sampled_from([2, 5, 8]),
        levels=st.integers(0, 3),
        delay=st.sampled_from([0, 3, 30]),
        preferred=st.sampled_from([(), (2,), (2, 4), (5,)]),
        default=POLICIES,
        first=POLICIES,
        bucketed=st.booleans(),
        preserve=st.booleans(),
    )
    def begin(
        self,
        max_rows: int,
        levels: int,
        delay: int,
        preferred: tuple[int, ...],
        default: QueuePolicy,
        first: QueuePolicy,
        bucketed: bool,
        preserve: bool,
    ) -> None:
        self.kind: Callable[[str], object] = Bucket if bucketed else str
        batching = DynamicBatching(
            preferred_batch_size=tuple(n for n in preferred if n <= max_rows),
            max_queue_delay_microseconds=delay,
            preserve_ordering=preserve,
            priority_levels=levels,
            default_priority_level=min(levels, 2),
            default_queue_policy=default,
            priority_queue_policy={1: first} if levels else {},
        )
        self.queue = Queue(max_rows, batching, max_queue_size=6)
        self.oracle = Oracle(max_rows, batching)
        self.now = 0
        self.arrivals = 0
        self.wake_at: int | None = None
        self.asleep = False

    @rule(
        rows=st.integers(1, 5),
        group=st.sampled_from(["a", "a", "a", "b", "c"]),
        priority=st.integers(0, 4),
        timeout=st.sampled_from([0, 1, 10]),
        deadline=st.sampled_from([None, None, None, 1_000, 15_000]),
    )
    def push(self, rows: int, group: str, priority: int, timeout: int, deadline: int | None) -> None:
        rows = min(rows, self.oracle.max_rows)
        due = None if deadline is None else self.now + deadline
        request = waiting(rows, self.kind(group), priority=priority, timeout_us=timeout, deadline_ns=due)
        level = self.oracle.level(priority)
        full = self.oracle.is_full(level)
        try:
            grown = self.queue.push(request, self.now)
        except Unavailable:
            assert full
            return
        assert not full
        self.arrivals += 1
        timeout_ns = self.oracle.timeout(request, level)
        self.oracle.waiters.append(Waiter(request, level, self.arrivals, self.now, timeout_ns))
        self.asleep = self.asleep and not grown

    @rule(ns=st.sampled_from([500, 1_000, 3_000, 10_000, 30_000]))
    def advance(self, ns: int) -> None:
        self.now += ns

    @rule()
    def take(self) -> None:
        dropped = self.oracle.expire(self.now)
        for waiter in list(self.oracle.waiters):
            # The queue meets cancelled requests when their turn comes; the oracle knows at once. Level them first.
            if waiter.request.cancelled:
                self.queue.remove(waiter.request)
                self.oracle.waiters.remove(waiter)
        expected = self.oracle.batch(self.now)
        taken = self.queue.take(self.now)
        assert {request: type(error) for request, error in taken.dropped} == dropped
        assert list(taken.batch) == expected
        if taken.batch:
            assert taken.batch[0] is self.oracle.order()[0].request, "the first in order is in every batch"
        assert taken.rows == sum(request.rows for request in expected) <= self.oracle.max_rows
        self.oracle.waiters = [w for w in self.oracle.waiters if w.request not in taken.batch]
        self.asleep = not taken.batch and not taken.dropped
        self.wake_at = taken.wake_at_ns
        if not taken.batch and self.oracle.waiters:
            assert self.wake_at is not None
            assert self.wake_at > self.now

    @rule(position=st.integers(0, 5))
    def remove(self, position: int) -> None:
        if position < len(self.oracle.waiters):
            waiter = self.oracle.waiters.pop(position)
            assert self.queue.remove(waiter.request)
            assert not self.queue.remove(waiter.request)
            self.asleep = False

    @rule(position=st.integers(0, 5))
    def cancel(self, position: int) -> None:
        if position < len(self.oracle.waiters):
            self.oracle.waiters[position].request.cancelled = True

    @precondition(lambda self: getattr(self, "asleep", False))
    @invariant()
    def sleeping_until_the_alarm_or_a_telling_push_misses_nothing(self) -> None:
        if any(w.request.cancelled for w in self.oracle.waiters):
            return
        if self.wake_at is None or self.now < self.wake_at:
            assert not [w for w in self.oracle.waiters if w.request.deadline_ns and w.request.deadline_ns <= self.now]
            assert not self.oracle.batch(self.now)

    @invariant()
    def the_length_is_the_number_of_those_waiting(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.oracle.waiters)


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueueAgainstOracle = QueueMachine.TestCase
