"""Who runs a batch: a thread of the model, which pulls, or the front end itself where the run is quick.

A model has as many slots as instances, and whoever runs a batch holds one: no instance is entered twice at once, and a
batch is formed only when there is a slot to run it in. The scheduler owns the queue, the slots and the one lock around
them, and the promise that every request it accepted is answered exactly once. What a batch is made of is `queue.py`'s
decision, what is quick `pace.py`'s, what is done with a batch `runner.py`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from threading import Condition, Lock, Thread, current_thread, get_ident
from time import monotonic

from server.batching.ordering import Ordering
from server.batching.pace import allowance
from server.batching.queue import Dropped, Queue, Taken, deadline_passed, was_cancelled
from server.batching.runner import Runner
from server.errors import Stopping, Unavailable
from server.logs import log
from server.request import Answers, InferRequest, prefixed
from server.statistics import Clock, Statistics

STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
"""Triton's text (core: src/dynamic_batch_scheduler.cc)."""


@dataclass(slots=True)
class _Job:
    """A batch and the slot to run it in; without a slot only requests that left the queue without running."""

    taken: Taken
    slot: int | None


class Scheduler:
    """Runs until closed. All methods may be called from any thread; `drain` and `close` wait."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        runner: Runner,
        instances: int,
        clock: Clock,
        statistics: Statistics,
        preserve_ordering: bool = False,
    ) -> None:
        self._queue = queue
        self._runner = runner
        self._pace = runner.pace
        self._clock = clock
        self._statistics = statistics
        self._lock = Lock()
        self._wake = Condition(self._lock)
        self._done = Condition(self._lock)
        self._free = list(range(instances))
        """Slots; the one used last goes first, since its memory is warm."""
        self._handed: deque[_Job] = deque()
        """What a caller of `release` has taken and found too slow to run itself."""
        self._releaser = 0
        """The thread that is in `release` and will look at the queue again before it leaves; 0: none."""
        self._alarm: float = inf
        """When a thread that waits will look at the queue by itself."""
        self._unanswered = 0
        self._accepting = True
        self._closed = False
        self._ordering = Ordering(self._answer) if preserve_ordering else None
        self._deliver = self._ordering.release if self._ordering else self._answer
        self._threads = [Thread(target=self._work, name=f"{name}#{i}", daemon=True) for i in range(instances)]
        for thread in self._threads:
            thread.start()

    def push(self, request: InferRequest, hold: bool = False) -> None:
        """Accept a request, or raise: Unavailable (queue full), Stopping, DeadlineExceeded, Cancelled.

        With `hold` nobody is woken for it before `release`.
        """
        expired: list[Dropped] = []
        try:
            with self._lock:
                if not self._accepting:
                    raise Stopping(prefixed(request, STOPPING))
                now = self._clock()
                if request.cancelled:
                    raise was_cancelled(request)
                if request.deadline_ns is not None and request.deadline_ns <= now:
                    raise deadline_passed(request)
                try:
                    grown = self._queue.push(request, now)
                except Unavailable:
                    # The dead make room for the living before anyone is refused.
                    expired = self._queue.expire(now)
                    if not expired:
                        raise
                    grown = self._queue.push(request, now)
                self._unanswered += 1
                if grown and not hold and self._free:
                    self._wake.notify()
        finally:
            if expired:
                self._drop(expired)

    def release(self) -> None:
        """What was pushed with `hold` may be taken now.

        Quick batches are run, and answered, within this call, until what is waiting now has used its allowance; the
        rest goes to the threads. A second call meanwhile, from an `on_done` or another thread, returns at once: the
        first looks at the queue again before it ends.
        """
        with self._lock:
            if self._releaser:
                return
            if not self._pace.has_quick:
                if len(self._queue) and self._free:
                    self._wake.notify()
                return
            self._releaser = get_ident()
            left: float = allowance(len(self._queue))
            job, left = self._take_quick(left)
        while job is not None:
            self._do(job)
            with self._lock:
                if job.slot is not None:
                    self._free.append(job.slot)
                job, left = self._take_quick(left)

    def cancel(self, request: InferRequest) -> bool:
        """Take a request out of the queue and answer it; False if it is running or answered already."""
        request.cancelled = True
        with self._lock:
            removed = self._queue.remove(request)
            if removed:
                self._wake.notify()  # without it, those behind may make a batch that goes at once
        if removed:
            late = request.deadline_ns is not None and request.deadline_ns <= self._clock()
            self._drop([(request, deadline_passed(request) if late else was_cancelled(request))])
        return removed

    def pending(self) -> int:
        """Requests accepted and not yet answered."""
        return self._unanswered

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def wake(self) -> None:
        """Look at the queue again: for those who move the injected clock by hand."""
        with self._lock:
            self._wake.notify_all()

    def drain(self, timeout: float | None) -> bool:
        """Refuse new requests and wait (seconds, real time) until all accepted ones are answered; False on timeout."""
        with self._lock:
            self._accepting = False
            return self._done.wait_for(lambda: self._unanswered == 0, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Refuse new requests and those still queued, let running batches end, stop the threads.

        False if a batch was still running after `timeout` seconds; its thread is then left behind.
        """
        me = get_ident()
        end = None if timeout is None else monotonic() + timeout
        with self._lock:
            self._accepting = False
            self._closed = True
            queued = self._queue.clear()
            self._wake.notify_all()
        self._drop([(request, Stopping(prefixed(request, STOPPING))) for request in queued])
        others = [thread for thread in self._threads if thread is not current_thread()]
        for thread in others:
            thread.join(None if end is None else max(0.0, end - monotonic()))
        with self._lock:
            left = None if end is None else max(0.0, end - monotonic())
            released = self._done.wait_for(lambda: self._releaser in (0, me), left)
        return released and not any(thread.is_alive() for thread in others)

    def _work(self) -> None:
        slot = None
        while (job := self._next(slot)) is not None:
            self._do(job)
            slot = job.slot
            del job  # nothing of a batch stays alive while the thread waits

    def _do(self, job: _Job) -> None:
        if job.taken.dropped:
            self._drop(job.taken.dropped)
        if job.slot is not None:
            self._runner.run(job.slot, job.taken.batch, self._deliver)

    def _next(self, slot: int | None) -> _Job | None:
        """A thread's next job, once it has given back its `slot`; None: the end."""
        with self._lock:
            if slot is not None:
                self._free.append(slot)
            while True:
                if self._handed:
                    return self._handed.popleft()
                if self._closed:
                    return None
                job, wake_at_ns = self._take() if self._free else (None, None)
                if job is not None:
                    if self._free and len(self._queue):  # one notify may have stood for several pushes
                        self._wake.notify()
                    return job
                if wake_at_ns is None:
                    self._wake.wait()
                else:
                    self._alarm = min(self._alarm, wake_at_ns)
                    self._wake.wait(max(0.0, (wake_at_ns - self._clock()) / 1e9))
                    self._alarm = inf

    def _take_quick(self, left: float) -> tuple[_Job | None, float]:
        """The next job for the caller of `release`, who may spend `left` nanoseconds, and what he may spend then.

        What would take longer goes to a thread, and so does the watch over what may be taken only later.
        """
        while self._free and len(self._queue):
            job, wake_at_ns = self._take()
            if job is None:
                if wake_at_ns is not None and wake_at_ns < self._alarm:
                    self._wake.notify()
                break
            if job.slot is None:
                return job, left
            cost = self._pace.expected(job.taken.batch[0].group, job.taken.rows)
            if cost <= left:
                return job, left - cost
            self._handed.append(job)
            self._wake.notify()
        self._releaser = 0
        if self._closed:
            self._done.notify_all()
        return None, left

    def _take(self) -> tuple[_Job | None, int | None]:
        """A look at the queue while a slot is free: a job, or when to look again."""
        taken = self._queue.take(self._clock())
        if taken.batch:
            if self._ordering:
                self._ordering.open(taken.batch)
            return _Job(taken, self._free.pop()), None
        if taken.dropped:
            return _Job(taken, None), None
        return None, taken.wake_at_ns

    def _drop(self, dropped: Iterable[Dropped]) -> None:
        now = self._clock()
        answers: Answers = []
        for request, error in dropped:
            self._statistics.failed(request, error, now)
            answers.append((request, error))
        self._answer(answers)

    def _answer(self, answers: Answers) -> None:
        for request, result in answers:
            on_done, request.on_done = request.on_done, None
            if on_done is None:
                log.error("a request was to be answered twice: a bug", model=request.model, request=request.id)
                continue
            try:
                on_done(request, result)
            except Exception as error:  # noqa: BLE001  the instance thread has to live on
                log.defect("an on_done raised", error, model=request.model, request=request.id)
        with self._lock:
            self._unanswered -= len(answers)
            if not self._unanswered and not self._accepting:
                self._done.notify_all()
