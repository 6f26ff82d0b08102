"""Running one batch on a session: collate, run, split, and find the guilty request when the run fails.

A batch that raises is halved and run again, breadth first, until the requests that make it fail stand alone; only
they get the error. One guilty request among n costs at most 2·ceil(log2 n) extra runs. If that many extra runs and one
more have been made without a single success, the model is taken to be broken and all that is left fails at once, so
that a dead device is not asked 2n times. No other server that we read does this; they fail all batch-mates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import thread_time_ns

from server.backends.base import BackendError, Batch, Device, Session
from server.batching.buffers import Buffers
from server.batching.collate import Collator
from server.batching.pace import Pace
from server.batching.queue import deadline_passed, was_cancelled
from server.errors import Internal, ServerError
from server.logs import log
from server.request import Answers, InferRequest, Response, Result, prefixed
from server.statistics import Clock, Statistics, Timing

Deliver = Callable[[Answers], None]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a run gave no answers."""

    text: str
    final: bool = False
    """Running again with fewer requests is no use."""


def extra_runs_allowed(number: int) -> int:
    """How many runs may follow a failed batch of `number` requests before one of them has to succeed."""
    return 2 * (number - 1).bit_length() + 1


class Runner:
    """One per model. `run` may be called from several threads at once, but for each instance once at a time."""

    def __init__(
        self,
        model: str,
        session: Session,
        collator: Collator,
        clock: Clock,
        statistics: Statistics,
        instances: Sequence[Device] = (Device(),),
    ) -> None:
        self._model = model
        self._session = session
        self._collator = collator
        self._buffers = [Buffers(session.allocate) for _ in instances]
        self.pace = Pace(session.steady and all(device.kind == "cpu" for device in instances))
        self._threads = max(1, session.threads)
        self._clock = clock
        self._statistics = statistics
        self._reported: set[str] = set()

    def run(self, instance: int, requests: Sequence[InferRequest], deliver: Deliver) -> None:
        """Answer every one of `requests` through `deliver`, in one call or several; never raises."""
        error = self._attempt(instance, requests, deliver)
        if error is None:
            return
        if len(requests) == 1 or error.final:
            self._fail(requests, error, deliver)
        else:
            self._search(instance, requests, error, deliver)

    def rehearse(self, instance: int, requests: Sequence[InferRequest]) -> None:
        """Run once for nobody: nothing is counted but the pace. Raises whatever the run raises."""
        self._once(instance, requests, sum(request.rows for request in requests))

    def _search(self, instance: int, requests: Sequence[InferRequest], error: _Failure, deliver: Deliver) -> None:
        suspects = deque(_halves(requests))
        allowed: int | None = extra_runs_allowed(len(requests))
        runs = 0
        while suspects:
            part = self._alive(suspects.popleft(), deliver)
            if not part:
                continue
            if allowed is not None and runs >= allowed:
                self._fail(part, error, deliver)
                continue
            runs += 1
            self._statistics.retried()
            failure = self._attempt(instance, part, deliver)
            if failure is None:
                allowed = None
            elif len(part) == 1 or failure.final:
                self._fail(part, failure, deliver)
            else:
                error = failure
                suspects.extend(_halves(part))

    def _alive(self, requests: Sequence[InferRequest], deliver: Deliver) -> Sequence[InferRequest]:
        """Those whose client still waits; the others are answered, since a second run would be for nobody."""
        now = self._clock()
        gone: Answers = []
        for request in requests:
            if request.deadline_ns is not None and request.deadline_ns <= now:
                gone.append((request, deadline_passed(request)))
            elif request.cancelled:
                gone.append((request, was_cancelled(request)))
        if not gone:
            return requests
        for request, error in gone:
            assert isinstance(error, ServerError)
            self._statistics.failed(request, error, now)
        deliver(gone)
        left = dict(gone)
        return [request for request in requests if request not in left]

    def _attempt(self, instance: int, requests: Sequence[InferRequest], deliver: Deliver) -> _Failure | None:
        """Run once. Delivers and returns None if that went well."""
        rows = 0
        for request in requests:
            rows += request.rows
        try:
            results, timing, batch = self._once(instance, requests, rows)
        except Internal as error:
            return _Failure(str(error), final=True)
        except BackendError as error:
            return _Failure(str(error))
        except BaseException as error:  # noqa: BLE001  whatever user code raises, the instance thread has to live on
            return _Failure(self._unexpected(error))
        if self._collator.pads:
            self._statistics.padded(*self._collator.waste(requests, batch))
        self._record(requests, results, rows, timing)
        deliver(list(zip(requests, results, strict=True)))
        return None

    def _once(self, instance: int, requests: Sequence[InferRequest], rows: int) -> tuple[list[Result], Timing, Batch]:
        clock = self._clock
        start = clock()
        batch = self._collator.collate(requests, rows, self._buffers[instance])
        collated = clock()
        pace = self.pace
        exact = pace.in_doubt
        began = thread_time_ns() if exact else collated
        arrays = self._session.run(instance, batch)
        ran = clock()
        if pace.steady:
            # the caller's share times the threads of the run is more than the run takes
            took = (thread_time_ns() - began) * self._threads if exact else ran - collated
            pace.measured(requests[0].group, rows, took, exact)
        outputs = self._collator.gather(arrays, batch.outputs, rows)
        results = self._collator.answer(outputs, requests)
        return results, Timing(start, collated, ran, clock()), batch

    def _record(self, requests: Sequence[InferRequest], results: list[Result], rows: int, timing: Timing) -> None:
        if any(type(result) is not Response for result in results):
            good = []
            for request, result in zip(requests, results, strict=True):
                if isinstance(result, ServerError):
                    self._statistics.failed(request, result, timing.end_ns)
                else:
                    good.append(request)
            requests = good
        self._statistics.succeeded(requests, rows, timing)

    def _fail(self, requests: Sequence[InferRequest], error: _Failure, deliver: Deliver) -> None:
        self._report(error.text)
        now = self._clock()
        answers: Answers = []
        for request in requests:
            # One error object per request: exceptions are not to be shared between threads.
            own = Internal(prefixed(request, error.text))
            self._statistics.failed(request, own, now)
            answers.append((request, own))
        deliver(answers)

    def _unexpected(self, error: BaseException) -> str:
        """Log an exception that is no BackendError with its traceback, once per kind; return the text for clients."""
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        if self._first(kind):
            log.defect("the backend raised an unexpected error (reported once)", error, model=self._model, kind=kind)
        return f"model '{self._model}' failed with {type(error).__name__}"

    def _report(self, text: str) -> None:
        if self._first(text):
            log.warning("a run failed (reported once)", model=self._model, reason=text)

    def _first(self, text: str) -> bool:
        # Bounded: texts may carry values that clients choose.
        if text in self._reported or len(self._reported) >= 100:
            return False
        self._reported.add(text)
        return True


def _halves(requests: Sequence[InferRequest]) -> tuple[Sequence[InferRequest], Sequence[InferRequest]]:
    middle = len(requests) // 2
    return requests[:middle], requests[middle:]
