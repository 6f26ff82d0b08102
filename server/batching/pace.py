"""How long runs take, and which of them are short enough for the thread that reads the sockets.

Handing a batch to another thread and getting the answers back costs 50 to 100 µs on two cores, most of it in waiting
for the interpreter's lock; a perceptron 784-512-10 takes 35 µs for one row and 8 µs a row in a batch of 64. So a run
that is short against what the front end itself spends on its requests (some 30 µs each) is made where it is found.
Answers per second through the server with 1, 16 and 64 requests in flight: 3,160, 19,200 and 23,400, through a thread
2,220, 13,300 and 16,500. At four times that size, 100 µs and 30 µs a row, it is still 2,860, 12,700 and 17,400 against
2,280, 12,100 and 15,000 on two cores that the client shares; with more cores threads would gain before that.

Only for sessions whose time depends on shapes alone (`Session.steady`), and only for shapes that have been measured:
no client can freeze the front end with a request that looks like a quick one. What is unknown is measured elsewhere
first: at warm-up or in an instance thread.
"""

from __future__ import annotations

from math import inf

BASE_NS = 150_000
PER_REQUEST_NS = 20_000

MAX_KINDS = 1024
"""Shapes and sizes that are remembered; then all are forgotten, since clients choose the shapes."""


def allowance(requests: int) -> int:
    """Nanoseconds that the front end may spend in runs when `requests` are waiting."""
    return BASE_NS + PER_REQUEST_NS * requests


class Pace:
    """Run times of one model by kind: the requests' group and the power of two that holds their rows.

    Used by all threads of the model without a lock: a lost update costs one measurement.
    """

    def __init__(self, steady: bool) -> None:
        self.steady = steady
        """Whether anything is measured here at all."""
        self.in_doubt = steady
        """Whether the next run is to be measured by processor time, which costs two system calls. By the clock a busy
        host makes every run a long one, and then a hand-over on top of it is what it can least afford. So a run that
        the clock finds quick is believed, and one that it does not is measured again."""
        self._expected: dict[tuple[object, int], float] = {}
        self._quick: set[tuple[object, int]] = set()

    @property
    def has_quick(self) -> bool:
        """Whether any kind is quick: if none is, nobody need form a batch to find that it is not."""
        return bool(self._quick)

    def expected(self, group: object, rows: int) -> float:
        """Nanoseconds; infinite for a kind that has not been measured."""
        return self._expected.get((group, (rows - 1).bit_length()), inf)

    def measured(self, group: object, rows: int, ns: int, exact: bool = True) -> None:
        """One run took `ns`: of processor time if `exact`, else by the clock."""
        if not exact and ns > allowance(rows):
            self.in_doubt = True
            return
        kind = (group, (rows - 1).bit_length())
        before = self._expected.get(kind)
        if before is None:
            if len(self._expected) >= MAX_KINDS:
                self._expected.clear()
                self._quick.clear()
            self._expected[kind] = inf  # the first run of a kind is a slow one and tells nothing
            return
        # Up at once, down by halves: inputs that are slow by their values (denormals) must not be believed quick again
        # after one that is not.
        self._expected[kind] = now = ns if before == inf or ns > before else (before + ns) / 2
        if now <= allowance(rows):
            self._quick.add(kind)
            self.in_doubt = False
        else:
            self._quick.discard(kind)
            self.in_doubt = True
