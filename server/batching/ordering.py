"""Answers released in the order in which their requests were taken (`preserve_ordering`), however instances differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock

from server.request import Answers, InferRequest, Result


class Ordering:
    """Owner of the answers that have to wait for earlier ones."""

    def __init__(self, send: Callable[[Answers], None]) -> None:
        self._send = send
        self._lock = Lock()
        self._order: deque[InferRequest] = deque()
        self._ready: dict[InferRequest, Result] = {}
        self._sending = False

    def open(self, requests: Iterable[InferRequest]) -> None:
        """Called in the order of the queue: under the lock that `take` is called under."""
        with self._lock:
            self._order.extend(requests)

    def release(self, answers: Answers) -> None:
        """Send these as soon as all that were opened before them have been sent. One thread sends at a time."""
        with self._lock:
            self._ready.update(answers)
            if self._sending:
                return
            self._sending = True
        while True:
            with self._lock:
                due: Answers = []
                while self._order and self._order[0] in self._ready:
                    request = self._order.popleft()
                    due.append((request, self._ready.pop(request)))
                if not due:
                    self._sending = False
                    return
            self._send(due)
