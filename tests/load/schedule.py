"""When to send, decided purely: ranges of levels, and send times for an open loop."""

from __future__ import annotations

import math

import numpy as np

from tests.load.errors import LoadError

DISTRIBUTIONS = ("constant", "poisson")
MAX_LEVELS = 1000
MAX_REQUESTS = 10_000_000
"""Send times are held in memory, 8 bytes each."""


def levels(text: str, flag: str, *, whole: bool) -> tuple[float, ...]:
    """The loads of `start[:end[:step]]`, end included when a step falls on it, as perf_analyzer reads it.

    The step is 1 when left out; `xK` multiplies by K instead of adding, so that `1:32:x2` is 1, 2, 4, 8, 16, 32.
    `whole`: only whole numbers (requests in flight). Raises LoadError.
    """
    parts = text.split(":")
    if len(parts) > 3:
        raise LoadError(f"{flag} {text!r}: expected start:end:step")
    start = _number(parts[0], flag, text, whole)
    end = _number(parts[1], flag, text, whole) if len(parts) > 1 else start
    if end < start:
        raise LoadError(f"{flag} {text!r}: the end {end:g} is below the start {start:g}")
    step = parts[2] if len(parts) > 2 else "1"
    if step.startswith("x"):
        return _geometric(start, end, _number(step[1:], flag, text, False), flag, text, whole)
    width = _number(step, flag, text, whole)
    # The tolerance keeps 0.1:0.3:0.1 at three levels.
    count = math.floor((end - start) / width + 1e-9) + 1
    if count > MAX_LEVELS:
        raise LoadError(f"{flag} {text!r}: {count} levels, at most {MAX_LEVELS}")
    return tuple(start + width * index for index in range(count))


def _geometric(start: float, end: float, factor: float, flag: str, text: str, whole: bool) -> tuple[float, ...]:
    if factor <= 1:
        raise LoadError(f"{flag} {text!r}: a step of x{factor:g} never ends, it must be above x1")
    found: list[float] = []
    value = start
    while value <= end * (1 + 1e-9):
        level = float(round(value)) if whole else value
        if level not in found:
            found.append(level)
        if len(found) > MAX_LEVELS:
            raise LoadError(f"{flag} {text!r}: more than {MAX_LEVELS} levels")
        value *= factor
    return tuple(found)


def _number(part: str, flag: str, text: str, whole: bool) -> float:
    kind = "whole number" if whole else "number"
    try:
        value = float(int(part)) if whole else float(part)
    except (ValueError, OverflowError):
        raise LoadError(f"{flag} {text!r}: {part!r} is no {kind}") from None
    if not (0 < value < math.inf):
        raise LoadError(f"{flag} {text!r}: {part!r} must be a {kind} above 0")
    return value


def send_times(
    rate: float, distribution: str, *, duration_s: float | None = None, count: int | None = None, seed: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Nanoseconds after the start at which to send, rising, for `rate` requests per second.

    Give exactly one of `duration_s` and `count`; the other follows, `count = rate * duration_s` rounded up.
    `constant` spaces them evenly from 0. `poisson` places them at independent, uniformly random times, which is a
    Poisson process given its count: the arrivals of many independent users, which is what makes queues form below
    full load, at exactly the rate asked for. (Exponential gaps would miss it by 1/√count, 8 % for 150 requests.) The
    same seed gives the same times, so that targets compared in one run meet the same bursts.
    """
    if (duration_s is None) == (count is None):
        raise ValueError("give either duration_s or count")
    # The tolerance keeps 0.1 s at 30/s, which is 3.0000000000000004 in floating point or the like, at 3 requests.
    number = count if count is not None else max(1, math.ceil(rate * (duration_s or 0.0) - 1e-9))
    if number > MAX_REQUESTS:
        raise LoadError(f"request rate {rate:g}: {number} requests in one level, at most {MAX_REQUESTS}")
    if distribution == "constant":
        seconds = np.arange(number) / rate
    else:
        span = number / rate if duration_s is None else duration_s
        seconds = np.sort(np.random.default_rng(seed).uniform(0, span, number))
    return (seconds * 1e9).astype(np.int64)
