"""The command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.client import Address
from tests.load.errors import LoadError
from tests.load.options import parse


def test_the_defaults_are_one_request_in_flight_for_five_seconds() -> None:
    options = parse(["-m", "minilm"])
    assert options.targets == (Address("minilm", "minilm", "", "localhost:8001"),)
    assert (options.open_loop, options.loads, options.batch, options.interval_s) == (False, (1,), 1, 5)
    assert (options.input_file, options.request_count, options.warmup, options.connections) == (None, None, None, 1)


def test_perf_analyzers_flags_mean_the_same() -> None:
    flags = "-m a -x 2 -u h:1 -i gRPC -b 4 --request-rate-range 10:20:5 --request-distribution poisson -p 250 "
    flags += (
        "--shape ids:0:1,2 --shape mask:3 --input-range ids:0:-5:5 --input-data in.json --percentile 75 -f out.csv -a"
    )
    options = parse(flags.split())
    assert options.targets == (Address("a", "a", "2", "h:1"),)
    assert (options.open_loop, options.loads, options.distribution) == (True, (10, 15, 20), "poisson")
    assert (options.batch, options.interval_s, options.percentile, options.csv) == (4, 0.25, 75, Path("out.csv"))
    assert options.filling.shapes == {"ids:0": (1, 2), "mask": (3,)}
    assert options.filling.ranges == {"ids:0": (-5, 5)}
    assert options.input_file == Path("in.json")


def test_targets_have_labels_and_versions() -> None:
    options = parse(["--target", "before=m:2@h:1", "--target", "n@[::1]:8001"])
    assert options.targets == (Address("before", "m", "2", "h:1"), Address("n", "n", "", "[::1]:8001"))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("", "which model"),
        ("-m a --nonsense", "--nonsense"),
        ("-m a --streaming", "unary"),
        ("-m a -i http", "gRPC only"),
        ("-m a -b 0", "-b"),
        ("-m a -b x", "'x' is not a whole number"),
        ("-m a -p 0", "above 0"),
        ("-m a -p nan", "above 0"),
        ("-m a --percentile 101", "above 100"),
        ("-m a --connections 0", "at least 1"),
        ("-m a --concurrency-range 1 --request-rate-range 1", "give one of them"),
        ("-m a --concurrency-range 0", "--concurrency-range"),
        ("-m a --request-rate-range -5", "--request-rate-range"),
        ("-m a --request-distribution uniform", "uniform"),
        ("-m a --shape x", "NAME:D1,D2"),
        ("-m a --shape x:1,-1", "NAME:D1,D2"),
        ("-m a --input-range x:1", "NAME:LOW:HIGH"),
        ("-m a --input-range x:2:1", "LOW not above HIGH"),
        ("-m a --input-range x:0:inf", "LOW not above HIGH"),
        ("--target m", "MODEL[:VERSION]@HOST:PORT"),
        ("--target a@h:1 -m b", "leave out -m"),
        ("--target a@h:1 --target a@h:2", "stands twice"),
        ("-m a --client curl", "curl"),
        ("--target a@h:1 --target b@h:1 --flame out.svg", "give one target"),
        ("-m a --request-count 9 --flame out.svg", "--measurement-interval"),
    ],
)
def test_a_mistake_is_one_line(flags: str, text: str) -> None:
    with pytest.raises(LoadError) as caught:
        parse(flags.split())
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_names_every_flag_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--concurrency-range", "--request-rate-range", "--target", "--html", "exit status"):
        assert flag in out
