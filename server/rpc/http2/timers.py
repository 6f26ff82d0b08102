"""Things to be done at a time, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

from server.logs import log


class Timer:
    """`action` is emptied when it is no longer wanted, so that the heap keeps nothing alive."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Timers:
    """A heap of timers; cancelled ones are swept when they are most of it, which is O(1) an addition."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._sequence = count()
        self._sweep_at = 256

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_ns: int, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heap = self._heap
        heappush(heap, (at_ns, next(self._sequence), timer))
        if len(heap) > self._sweep_at:
            heap[:] = [entry for entry in heap if entry[2].action is not None]
            heapify(heap)
            self._sweep_at = 256 + 2 * len(heap)
        return timer

    def next_ns(self) -> int | None:
        heap = self._heap
        while heap and heap[0][2].action is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def run(self, now_ns: int) -> None:
        """Do all that is due."""
        heap = self._heap
        while heap and heap[0][0] <= now_ns:
            action = heappop(heap)[2].action
            if action is not None:
                try:
                    action()
                except Exception as error:  # noqa: BLE001  one call must not end all
                    log.defect("a deadline could not be kept", error)
