"""The waiting requests of one model version, as a value that can be stepped by hand.

What belongs here: who may wait, in which order, until when, and which of them make the next batch. No thread, no
clock, no lock: every method is told the time, and the scheduler (the one owner) calls them under its own lock.

The rules, Triton's where it has one (core: src/dynamic_batch_scheduler.cc, src/scheduler_utils.cc):
- Order is priority level, then within a level those still in time before those that a DELAY policy has passed over,
  then arrival. A batch is always a prefix of that order; it closes before a request of another group (shapes) and
  before one that would take it beyond `max_batch_size`.
- The largest preferred size that the prefix reaches exactly goes at once. If none is reached, the whole prefix goes
  once it cannot grow to one any more or its oldest member has waited `max_queue_delay_microseconds`.
- Requests of a `Bucket`, of models that declare a padding, need not be neighbours, since their lengths hardly ever are
  equal: a batch is the first in order and those of its bucket in that order, from wherever they stand, and it closes as
  soon as one of another bucket waits. Nobody starves, because the first is in every batch; within a bucket nobody is
  overtaken. With `preserve_ordering` a batch is a prefix here too.
- A request whose deadline or queue timeout has passed at `now` is never in a batch.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, count
from typing import NamedTuple

from protos.model_config import DynamicBatching, QueuePolicy
from server.batching.padding import Bucket
from server.errors import Cancelled, DeadlineExceeded, InvalidRequest, ServerError, Unavailable
from server.request import InferRequest, prefixed

Dropped = tuple[InferRequest, ServerError]


class Taken(NamedTuple):
    """What one look at the queue gave."""

    batch: tuple[InferRequest, ...] = ()
    rows: int = 0
    dropped: tuple[Dropped, ...] = ()
    """Left the queue without running: expired, past their client's deadline, cancelled."""
    wake_at_ns: int | None = None
    """With an empty batch: when to look again if nothing is pushed before; None: only a push changes anything."""


class _Timer:
    """One entry of the expiry heap; emptied when its request leaves, so that the heap keeps no tensors alive."""

    __slots__ = ("request",)

    def __init__(self, request: InferRequest) -> None:
        self.request: InferRequest | None = request


class _Line(OrderedDict[InferRequest, "_Timer | None"]):
    """Requests in order. Not a deque: removal from the middle and from the front are both O(1), and nothing has to be
    swept later."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        super().__init__()
        self.buckets: dict[Bucket, OrderedDict[InferRequest, None]] = {}
        """The same requests by bucket, for a queue that gathers them from there; empty in any other."""


class _Level:
    """One priority level: those in time, and behind them those that waited longer than a DELAY policy's timeout."""

    __slots__ = ("delayed", "limit", "live", "number", "override", "reject", "timeout_ns")

    def __init__(self, number: int, policy: QueuePolicy, max_queue_size: int) -> None:
        self.number = number
        self.limit = policy.max_queue_size or max_queue_size
        self.timeout_ns = policy.default_timeout_microseconds * 1000
        self.override = policy.allow_timeout_override
        self.reject = policy.timeout_action != "DELAY"
        self.live = _Line()
        self.delayed = _Line()

    def expiry(self, request: InferRequest, now_ns: int) -> int | None:
        """When the request stops being in time: its queue timeout or its client's deadline, whichever is first."""
        timeout_ns = self.timeout_ns
        if self.override and request.timeout_us > 0:
            own = request.timeout_us * 1000
            # Triton compares with a default of 0 as if that were the shortest timeout, so that the override never
            # counts there; 0 means none, and every timeout is smaller than none.
            if timeout_ns == 0 or own < timeout_ns:
                timeout_ns = own
        if timeout_ns:
            at = now_ns + timeout_ns
            return at if request.deadline_ns is None else min(at, request.deadline_ns)
        return request.deadline_ns

    def __lt__(self, other: _Level) -> bool:
        return self.number < other.number


class Queue:
    """See the module's text for the rules. `max_batch_size` is in rows; 0 means that the model does not batch."""

    def __init__(self, max_batch_size: int, batching: DynamicBatching | None = None, max_queue_size: int = 0) -> None:
        """`max_queue_size` bounds each priority level whose policy has no bound of its own; 0: unbounded.

        The bound is per level so that a flood of low priority cannot keep high priority out.
        """
        policy = batching or DynamicBatching()
        self._merge = batching is not None and max_batch_size > 1
        self._gathers = self._merge and not policy.preserve_ordering
        self._max_rows = max(1, max_batch_size)
        self._preferred = frozenset(n for n in policy.preferred_batch_size if n <= self._max_rows) or frozenset(
            [self._max_rows]
        )
        self._smallest, self._largest = min(self._preferred), max(self._preferred)
        self._delay_ns = policy.max_queue_delay_microseconds * 1000 if self._merge else 0
        self._batching = policy
        self._max_queue_size = max_queue_size
        self._levels: dict[int, _Level] = {}
        self._usual: _Level | None = None
        """The level of requests that name none, once there was one."""
        self._ordered: list[_Level] = []
        self._lines: list[_Line] = []
        self._timers: list[tuple[int, int, _Timer]] = []
        self._sequence = count()
        self._size = 0
        self._rows = 0
        self._last_group: object = None

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        levels = ", ".join(f"level {v.number}: {len(v.live)} + {len(v.delayed)} delayed" for v in self._ordered)
        return f"<Queue {self._size} waiting, {self._rows} rows{'; ' if levels else ''}{levels}>"

    def push(self, request: InferRequest, now_ns: int) -> bool:
        """Append a request; says whether a `take` may now give something that it did not give before.

        Raises Unavailable when the request's level is full, InvalidRequest for more rows than any batch may have.
        """
        rows = request.rows
        if rows > self._max_rows:
            raise InvalidRequest(prefixed(request, f"{rows} rows exceed the {self._max_rows} that a batch may have"))
        level = self._usual if request.priority == 0 and self._usual is not None else self._level_of(request)
        if level.limit and len(level.live) + len(level.delayed) >= level.limit:
            raise Unavailable(prefixed(request, "Exceeds maximum queue size"))
        request.queued_ns = now_ns
        expiry = level.expiry(request, now_ns)
        level.live[request] = None if expiry is None else self._timer(request, expiry)
        if self._gathers and type(request.group) is Bucket:
            self._index(level.live, request, request.group)
        grown = not self._delay_ns or self._merge_hint(request, expiry)
        self._size += 1
        self._rows += rows
        self._last_group = request.group
        return grown

    def take(self, now_ns: int) -> Taken:
        """The next batch, if it is time for one, and all who can no longer be in any."""
        dropped = self.expire(now_ns) if self._timers else []
        if not self._size:
            return Taken(dropped=tuple(dropped)) if dropped else _NOTHING
        batch, rows, ready_ns = self._next_batch(dropped)
        if not batch:
            return Taken(dropped=tuple(dropped), wake_at_ns=self._next_expiry())
        if ready_ns is not None and ready_ns > now_ns:
            expiry = self._next_expiry()
            wake = ready_ns if expiry is None else min(ready_ns, expiry)
            return Taken(dropped=tuple(dropped), wake_at_ns=wake)
        if self._gathers and type(batch[0].group) is Bucket:
            for request in batch:
                self._discard(self._line_of(request), request)
        else:
            self._pop_front(len(batch))
            self._rows -= rows
        return Taken(tuple(batch), rows, tuple(dropped))

    def remove(self, request: InferRequest) -> bool:
        """Take one request out, wherever it stands; False if it is not waiting."""
        line = self._line_of(request)
        if request not in line:
            return False
        self._discard(line, request)
        return True

    def expire(self, now_ns: int) -> list[Dropped]:
        """All who stopped being in time at or before `now_ns`; those under a DELAY policy move back instead."""
        dropped: list[Dropped] = []
        timers = self._timers
        while timers and timers[0][0] <= now_ns:
            request = heappop(timers)[2].request
            if request is None:
                continue
            level = self._level_of(request)
            if request.deadline_ns is not None and request.deadline_ns <= now_ns:
                self._discard(self._line_of(request), request)
                dropped.append((request, deadline_passed(request)))
            elif level.reject:
                self._discard(level.live, request)
                dropped.append((request, Unavailable(prefixed(request, "Request timeout expired"))))
            else:
                self._leave(level.live, request)
                at = request.deadline_ns
                level.delayed[request] = None if at is None else self._timer(request, at)
                if self._gathers and type(request.group) is Bucket:
                    self._index(level.delayed, request, request.group)
        return dropped

    def clear(self) -> tuple[InferRequest, ...]:
        """Empty the queue; those who were waiting, in order."""
        waiting = tuple(chain.from_iterable(self._lines))
        for line in self._lines:
            line.clear()
            line.buckets.clear()
        self._timers.clear()
        self._size = self._rows = 0
        return waiting

    def _next_batch(self, dropped: list[Dropped]) -> tuple[list[InferRequest], int, int | None]:
        """The next batch and its rows, and the time before which it should not go (None: go). Drops the cancelled."""
        head = self._head(dropped)
        if head is None:
            return [], 0, None
        batch: list[InferRequest] = []
        cancelled: list[InferRequest] = []
        rows = best = best_rows = 0
        group, oldest = head.group, head.queued_ns
        bucket = group if self._gathers and type(group) is Bucket else None
        closed = not self._merge
        max_rows, preferred = self._max_rows, self._preferred
        for request in chain.from_iterable(self._lines) if bucket is None else self._of_bucket(bucket):
            if request.cancelled:
                cancelled.append(request)
                continue
            if batch and (closed or rows + request.rows > max_rows or request.group != group):
                closed = True
                break
            oldest = min(oldest, request.queued_ns)
            batch.append(request)
            rows += request.rows
            if rows in preferred:
                best, best_rows = len(batch), rows
            if closed or rows >= max_rows:
                closed = True
                break
        for request in cancelled:
            self.remove(request)
            dropped.append((request, was_cancelled(request)))
        if best and self._merge:
            return batch[:best], best_rows, None
        if bucket is not None and len(batch) < self._size:
            closed = True
        if closed or rows >= self._largest or not self._delay_ns:
            return batch, rows, None
        return batch, rows, oldest + self._delay_ns

    def _head(self, dropped: list[Dropped]) -> InferRequest | None:
        """The first in order, whom every batch begins with. Drops the cancelled before it."""
        while (head := next(chain.from_iterable(self._lines), None)) is not None and head.cancelled:
            self.remove(head)
            dropped.append((head, was_cancelled(head)))
        return head

    def _of_bucket(self, bucket: Bucket) -> Iterator[InferRequest]:
        return chain.from_iterable([line.buckets.get(bucket, ()) for line in self._lines])

    def _pop_front(self, number: int) -> None:
        self._size -= number
        for line in self._lines:
            while line and number:
                timer = line.popitem(last=False)[1]
                if timer is not None:
                    timer.request = None
                number -= 1
            if not number:
                return

    def _discard(self, line: _Line, request: InferRequest) -> None:
        self._leave(line, request)
        self._size -= 1
        self._rows -= request.rows

    def _index(self, line: _Line, request: InferRequest, bucket: Bucket) -> None:
        line.buckets.setdefault(bucket, OrderedDict())[request] = None

    def _leave(self, line: _Line, request: InferRequest) -> None:
        timer = line.pop(request)
        if timer is not None:
            timer.request = None
        if self._gathers and type(request.group) is Bucket:
            same = line.buckets[request.group]
            del same[request]
            if not same:  # clients choose the shapes: no bucket outlives its requests
                del line.buckets[request.group]

    def _line_of(self, request: InferRequest) -> _Line:
        """Where it stands, if it stands anywhere."""
        level = self._level_of(request)
        return level.delayed if request in level.delayed else level.live

    def _level_of(self, request: InferRequest) -> _Level:
        number = request.priority
        if number <= 0 or number > self._batching.priority_levels:
            if self._usual is not None:
                return self._usual
            number = self._batching.default_priority_level
        level = self._levels.get(number)
        if level is None:
            policy = self._batching
            own = policy.priority_queue_policy.get(number, policy.default_queue_policy)
            level = self._levels[number] = _Level(number, own, self._max_queue_size)
            if number == policy.default_priority_level:
                self._usual = level
            insort(self._ordered, level)
            self._lines = [line for v in self._ordered for line in (v.live, v.delayed)]
        return level

    def _timer(self, request: InferRequest, at_ns: int) -> _Timer:
        timer = _Timer(request)
        timers = self._timers
        heappush(timers, (at_ns, next(self._sequence), timer))
        # Requests that left in time leave an empty timer behind: swept when most are empty, which is O(1) a push.
        if len(timers) > 64 + 2 * self._size:
            timers[:] = [entry for entry in timers if entry[2].request is not None]
            heapify(timers)
        return timer

    def _next_expiry(self) -> int | None:
        timers = self._timers
        while timers and timers[0][2].request is None:
            heappop(timers)
        return timers[0][0] if timers else None

    def _merge_hint(self, request: InferRequest, expiry: int | None) -> bool:
        """With a delay only a push that may complete or close a batch can be taken at once."""
        if not self._size or expiry is not None or len(self._ordered) > 1:
            return True
        return self._rows + request.rows >= self._smallest or request.group != self._last_group


_NOTHING = Taken()


def deadline_passed(request: InferRequest) -> DeadlineExceeded:
    return DeadlineExceeded(prefixed(request, "the client's deadline passed before the request was run"))


def was_cancelled(request: InferRequest) -> Cancelled:
    return Cancelled(prefixed(request, "request was cancelled"))
