"""One version of one model, ready to answer: the only door between the front ends and the core.

submit -> validate -> queue -> (an instance is free) -> collate -> session.run -> split -> on_done
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from protos.model_config import ModelConfig, ModelIO
from server.backends.base import Device, Session
from server.batching.collate import Collator
from server.batching.queue import Queue
from server.batching.runner import Runner
from server.batching.scheduler import Scheduler
from server.classification import Labels
from server.errors import Internal, ServerError
from server.logs import log
from server.request import InferRequest, OnDone, prefixed
from server.statistics import Clock, ModelStatistics, Statistics
from server.validate import Validator
from server.warmup import warm_up

DEFAULT_MAX_QUEUE_SIZE = 1024
"""Requests per priority level where neither model nor server says otherwise. Triton's default is no bound."""

CLOSE_TIMEOUT = 60.0
"""Seconds that `close` waits for running batches before it leaves the session to them."""


class Model:
    """Owns its session: `close` gives it back. All methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        version: int,
        config: ModelConfig,
        session: Session,
        instances: tuple[Device, ...],
        clock: Clock = time.monotonic_ns,
        max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE,
        labels: Mapping[str, Labels] | None = None,
    ) -> None:
        """`config` is complete (auto-completed from `session.io`); `labels` as `classification.read_labels` gives them.

        `max_queue_size` is in requests per priority level, 0 for no bound; a queue policy's own size goes before it.
        """
        self.name = name
        self.version = version
        self.config = config
        self.instances = instances
        self._session = session
        self._clock = clock
        self._statistics = Statistics()
        self.validator = Validator(name, config)
        batching = config.dynamic_batching
        self._runner = Runner(name, session, Collator(name, config, labels), clock, self._statistics, instances)
        self._scheduler = Scheduler(
            f"{name}/{version}",
            Queue(config.max_batch_size, batching, max_queue_size),
            self._runner,
            len(instances),
            clock,
            self._statistics,
            preserve_ordering=batching is not None and batching.preserve_ordering,
        )

    def __repr__(self) -> str:
        return f"<Model {self.name}/{self.version} {len(self.instances)} instances, {self.pending()} pending>"

    @property
    def io(self) -> ModelIO:
        return self._session.io

    @property
    def threads(self) -> int:
        """Threads that one run of an instance may use; 0 where the backend does not say."""
        return self._session.threads

    def warm_up(self, seconds: float) -> None:
        """Make first runs here and now; before the first `submit`, and for at most about `seconds`.

        Not where values decide how long a run takes: with those made up here it might never end.
        """
        if self._session.steady:
            warm_up(self.config, self.validator, self._runner, len(self.instances), seconds)

    def submit(self, request: InferRequest, on_done: OnDone, hold: bool = False) -> None:
        """Have `request` answered. Never raises: whatever becomes of it arrives through `on_done`, exactly once, from
        any thread, also from within this call.

        Sets `rows`, `group`, `queued_ns`, and `arrived_ns` if the front end has not. With `hold` more requests are
        about to follow, and the caller says `release` after the last: no instance is woken for the first alone.
        """
        if not request.arrived_ns:
            request.arrived_ns = self._clock()
        request.on_done = on_done
        try:
            if request.checked is not self.validator:
                self.validator.check(request)
            self._scheduler.push(request, hold)
            return
        except ServerError as error:
            refused: ServerError = error
        except Exception as error:  # noqa: BLE001  whatever went wrong, the client gets an answer
            log.defect("submit failed", error, model=self.name)
            refused = Internal(prefixed(request, f"model '{self.name}' could not take the request"))
        request.on_done = None
        self._statistics.failed(request, refused, self._clock())
        on_done(request, refused)

    def release(self) -> None:
        """No more requests follow those that were submitted with `hold`."""
        self._scheduler.release()

    def cancel(self, request: InferRequest) -> None:
        """The client has gone: a waiting request is answered now (Cancelled, or DeadlineExceeded if its deadline has
        passed) and never runs; one that is running is answered as if nothing had happened."""
        self._scheduler.cancel(request)

    def statistics(self) -> ModelStatistics:
        return self._statistics.snapshot()

    def pending(self) -> int:
        """Requests submitted and not yet answered."""
        return self._scheduler.pending()

    def waiting(self) -> int:
        """Those of them that wait in the queue (Triton: nv_inference_pending_request_count)."""
        return self._scheduler.waiting()

    def wake(self) -> None:
        """Look at the queue again, after an injected clock has been moved."""
        self._scheduler.wake()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests (Stopping), finish the accepted ones; False if `timeout` seconds were not enough."""
        return self._scheduler.drain(timeout)

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Refuse new and waiting requests (Stopping), finish the running ones, stop the instances, free memory."""
        if self._scheduler.close(timeout):
            self._session.close()
        else:
            log.error("still running, its memory stays taken", model=self.name, version=self.version, seconds=timeout)
