"""h2load's output, as its version 1.52 prints it, and what of it is a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import h2load
from tests.bench.h2load import LoadFailed, Prepared

ANSWER = 75
OUTPUT = """
finished in 2.75s, 1816.52 req/s, 231.95KB/s
requests: 5000 total, 5000 started, 5000 done, {good} succeeded, 0 failed, 0 errored, 0 timeout
status codes: 5000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 638.45KB (653772) total, 14.71KB (15060) headers (space savings 95.44%), 366.21KB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:     1.23ms     42.35ms      8.77ms      2.67ms    86.22%
"""


def prepared(answer: int | None) -> Prepared:
    return Prepared("http://127.0.0.1:1/x", Path("x"), (), answer)


def output(good: int = 5000, data: int = 5000 * ANSWER) -> str:
    return OUTPUT.format(good=good, data=data)


def test_the_seconds_of_a_good_run() -> None:
    assert h2load.check(output(), 5000, prepared(ANSWER)) == 2.75
    assert h2load.check(output().replace("2.75s", "356.95ms"), 5000, prepared(ANSWER)) == pytest.approx(0.35695)


def test_a_grpc_error_is_found_by_the_message_that_it_lacks() -> None:
    with pytest.raises(LoadFailed, match="374925 bytes together, not 75 each: some are gRPC errors"):
        h2load.check(output(data=4999 * ANSWER), 5000, prepared(ANSWER))


def test_over_http_the_status_tells_and_the_length_may_differ() -> None:
    assert h2load.check(output(data=1), 5000, prepared(None)) == 2.75
    with pytest.raises(LoadFailed, match="4998 of 5000"):
        h2load.check(output(good=4998), 5000, prepared(None))


def test_an_output_that_breaks_off_is_no_run() -> None:
    with pytest.raises(LoadFailed, match="not the output of a finished run"):
        h2load.check("starting benchmark...\n", 5000, prepared(ANSWER))


def test_the_prefix_of_a_grpc_message() -> None:
    assert h2load.framed(b"abc") == b"\0\0\0\0\3abc"
