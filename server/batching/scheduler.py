"""One thread per instance, which pulls: a batch is formed only when an instance is free to run it.

The scheduler owns the queue and the one lock around it, and the promise that every request it accepted is answered
exactly once. What a batch is made of is `queue.py`'s decision, what is done with it `runner.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition, Lock, Thread, current_thread
from time import monotonic

from server.batching.ordering import Ordering
from server.batching.queue import Dropped, Queue, Taken, deadline_passed, was_cancelled
from server.batching.runner import Runner
from server.errors import Stopping, Unavailable
from server.logs import log
from server.request import Answers, InferRequest, prefixed
from server.statistics import Clock, Statistics

STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
"""Triton's text (core: src/dynamic_batch_scheduler.cc)."""


class Scheduler:
    """Runs until closed. `push`, `cancel`, `pending` and `wake` may be called from any thread."""

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
        self._clock = clock
        self._statistics = statistics
        self._lock = Lock()
        self._wake = Condition(self._lock)
        self._done = Condition(self._lock)
        self._unanswered = 0
        self._accepting = True
        self._closed = False
        self._ordering = Ordering(self._answer) if preserve_ordering else None
        self._threads = [
            Thread(target=self._work, args=(i,), name=f"{name}#{i}", daemon=True) for i in range(instances)
        ]
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
                if grown and not hold:
                    self._wake.notify()
        finally:
            if expired:
                self._drop(expired)

    def release(self) -> None:
        """What was pushed with `hold` may be taken now."""
        with self._lock:
            if len(self._queue):
                self._wake.notify()

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
        with self._lock:
            self._accepting = False
            self._closed = True
            queued = self._queue.clear()
            self._wake.notify_all()
        self._drop([(request, Stopping(prefixed(request, STOPPING))) for request in queued])
        end = None if timeout is None else monotonic() + timeout
        for thread in self._threads:
            if thread is not current_thread():
                thread.join(None if end is None else max(0.0, end - monotonic()))
        return not any(thread.is_alive() for thread in self._threads if thread is not current_thread())

    def _work(self, instance: int) -> None:
        while self._step(instance):
            pass

    def _step(self, instance: int) -> bool:
        """Wait for work and do it. A method of its own so that no frame keeps the last batch alive while waiting."""
        taken = self._next()
        if taken is None:
            return False
        if taken.dropped:
            self._drop(taken.dropped)
        if taken.batch:
            self._runner.run(instance, taken.batch, self._ordering.release if self._ordering else self._answer)
        return True

    def _next(self) -> Taken | None:
        with self._lock:
            while not self._closed:
                taken = self._queue.take(self._clock())
                if taken.batch or taken.dropped:
                    if self._ordering and taken.batch:
                        self._ordering.open(taken.batch)
                    if len(self._queue):  # one notify may have stood for several pushes
                        self._wake.notify()
                    return taken
                if taken.wake_at_ns is None:
                    self._wake.wait()
                else:
                    self._wake.wait(max(0.0, (taken.wake_at_ns - self._clock()) / 1e9))
        return None

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
            if not self._unanswered:
                self._done.notify_all()
