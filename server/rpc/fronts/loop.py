"""The engine's one thread: it waits for the fronts' bells and for what other threads post."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from select import EPOLLIN, epoll
from typing import TypeVar

from server.logs import log

T = TypeVar("T")
LOOK_AGAIN_SECS = 1.0
"""A bell that could not be rung is rung again after so long at most."""


class Loop:
    """`post`, `call` and `end` are for any thread, everything else for the loop's own."""

    def __init__(self, after: Callable[[], None]) -> None:
        """`after` is called at the end of each round."""
        self._after = after
        self._poll = epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._mail: deque[Callable[[], None]] = deque()
        self._woken = False
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self.watch(self._wake_out.fileno(), self._woken_up)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="rpc", daemon=True)

    @property
    def here(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.get_ident() == self._thread.ident

    def start(self) -> None:
        self._thread.start()

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Do `action` whenever there is something to be read."""
        self._watched[descriptor] = action
        self._poll.register(descriptor, EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        del self._watched[descriptor]
        self._poll.unregister(descriptor)

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done on the loop's thread, with one wake-up for all that comes meanwhile."""
        self._mail.append(action)
        # append comes first and the loop clears the flag before it takes, so whoever sees it set will be taken
        if not self._woken:
            self._woken = True
            try:
                self._wake_in.send(b"\0")
            except OSError:  # full: it will wake; closed: nobody has to
                return

    def call(self, action: Callable[[], T]) -> T:
        """What `action` returns, or raises, on the loop's thread."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(action())
            except BaseException as error:  # noqa: BLE001 it is raised again where it is waited for
                done.set_exception(error)

        self.post(run)
        return done.result()

    def end(self) -> None:
        def last() -> None:
            self._ended = True

        self.post(last)
        if self._thread.ident is not None:
            self._thread.join()
        self._poll.close()
        self._wake_in.close()
        self._wake_out.close()

    def _woken_up(self) -> None:
        self._wake_out.recv(64)

    def _run(self) -> None:
        mail = self._mail
        while not self._ended:
            for descriptor, _ in self._poll.poll(LOOK_AGAIN_SECS):
                if (action := self._watched.get(descriptor)) is not None:
                    action()
            self._woken = False
            while mail:
                try:
                    mail.popleft()()
                except Exception as error:  # noqa: BLE001 one call must not end all
                    log.defect("an answer was lost", error)
            self._after()
