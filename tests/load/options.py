"""The command line, parsed and checked once; flags carry perf_analyzer's names where they mean the same."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.load import schedule
from tests.load.client import Address
from tests.load.errors import LoadError
from tests.load.inputs import STRING_LENGTH, Filling

DEFAULT_URL = "localhost:8001"
HTTP2, GRPCIO = "http2", "grpcio"
TARGET = re.compile(r"(?:(?P<label>[^=@]+)=)?(?P<model>[^=@]+?)(?::(?P<version>\d+))?@(?P<url>[^@\s]+)")
EXAMPLES = """\
examples:
  python -m tests.load -m minilm-int8 --shape input_ids:128 --shape attention_mask:128 --concurrency-range 1:32:x2
  python -m tests.load -m minilm-int8 --input-data samples.npz --request-rate-range 20:100:20 --html report.html
  python -m tests.load --target before=minilm@localhost:8001 --target after=minilm-int8@localhost:8001 --json out.json

exit status: 0 measured, 1 every request to some target failed, 2 a mistake in the flags, or no such server or model,
130 interrupted by Ctrl-C (what was measured until then is printed and written)."""


@dataclass(frozen=True, slots=True)
class Options:
    targets: tuple[Address, ...]
    open_loop: bool
    loads: tuple[float, ...]
    batch: int
    distribution: str
    interval_s: float
    request_count: int | None
    warmup: int | None
    """Requests answered before measuring; None: twice what is in flight, at least 10."""
    filling: Filling
    input_file: Path | None
    percentile: float | None
    timeout_s: float
    connections: int
    client: str
    seed: int
    csv: Path | None
    json: Path | None
    html: Path | None
    flame: Path | None
    progress: bool
    command: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LoadError(message)


def parse(arguments: Sequence[str]) -> Options:
    """Raises LoadError for a mistake; SystemExit after --help."""
    flags = _parser().parse_args(arguments)
    _refuse(flags)
    open_loop = flags.request_rate_range is not None
    if open_loop and flags.concurrency_range is not None:
        raise LoadError("--concurrency-range and --request-rate-range: give one of them")
    if open_loop:
        loads = schedule.levels(flags.request_rate_range, "--request-rate-range", whole=False)
    else:
        loads = schedule.levels(flags.concurrency_range or "1", "--concurrency-range", whole=True)
    zero = flags.input_data == "zero"
    return Options(
        targets=_targets(flags),
        open_loop=open_loop,
        loads=loads,
        batch=flags.b,
        distribution=flags.request_distribution,
        interval_s=flags.measurement_interval / 1e3,
        request_count=flags.request_count or None,
        warmup=flags.warmup_request_count,
        filling=Filling(dict(flags.shape), dict(flags.input_range), zero, flags.string_length, flags.seed),
        input_file=None if zero or flags.input_data == "random" else Path(flags.input_data),
        percentile=flags.percentile,
        timeout_s=flags.client_timeout,
        connections=flags.connections,
        client=flags.client,
        seed=flags.seed,
        csv=flags.f,
        json=flags.json,
        html=flags.html,
        flame=flags.flame,
        progress=not flags.no_progress,
        command=tuple(arguments),
    )


def _targets(flags: argparse.Namespace) -> tuple[Address, ...]:
    if flags.target:
        if flags.m or flags.x or flags.u:
            raise LoadError("--target names model, version and url itself: leave out -m, -x and -u")
        found = tuple(flags.target)
    elif flags.m:
        found = (Address(flags.m, flags.m, flags.x or "", flags.u or DEFAULT_URL),)
    else:
        raise LoadError("which model? give -m MODEL, or --target [LABEL=]MODEL[:VERSION]@URL once or more")
    labels = [target.label for target in found]
    for label in labels:
        if labels.count(label) > 1:
            raise LoadError(f"--target: the label {label!r} stands twice, name the targets: LABEL=MODEL@URL")
    return found


def _refuse(flags: argparse.Namespace) -> None:
    """Flags of perf_analyzer that mean something that this tool does not do, and ours that do not go together."""
    if flags.streaming:
        raise LoadError("--streaming: this tool sends unary requests; for streams use NVIDIA's perf_analyzer")
    if flags.i.lower() != "grpc":
        raise LoadError(f"-i {flags.i}: this tool speaks gRPC only")
    if flags.flame and len(flags.target or ()) > 1:
        raise LoadError("--flame: one server at a time, give one target")
    if flags.flame and flags.request_count:
        raise LoadError("--flame samples for a time: give --measurement-interval in place of --request-count")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m tests.load",
        description="Load-test a server of the Triton / KServe v2 protocol over gRPC.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole, positive, path = _number(int, 1), _number(float, 0, open_end=True), Path
    add = parser.add_argument_group("what to load").add_argument
    add("-m", metavar="MODEL", help="model name")
    add("-x", metavar="VERSION", help="model version (default: the server chooses)")
    add("-u", metavar="HOST:PORT", help=f"the server's gRPC address (default {DEFAULT_URL})")
    add(
        "--target",
        action="append",
        type=_target,
        metavar="[LABEL=]MODEL[:VERSION]@URL",
        help="several targets in one go, level by level in turn, in place of -m, -x and -u; repeatable",
    )
    add("--connections", type=whole, default=1, metavar="N", help="TCP connections per target (default 1)")
    add(
        "--client",
        choices=(HTTP2, GRPCIO),
        default=HTTP2,
        help="what sends the requests: http2, our own and the cheaper one, or grpcio (default http2)",
    )
    add("-i", default="grpc", metavar="PROTOCOL", help="grpc, the only one")
    add("-a", "--async", action="store_true", help="accepted for perf_analyzer's sake: always so")
    add("--streaming", action="store_true", help="refused: unary requests only")

    add = parser.add_argument_group("how much").add_argument
    add(
        "--concurrency-range",
        metavar="START:END:STEP",
        help="closed loop: exactly so many requests in flight; STEP may be xK to multiply (default 1)",
    )
    add(
        "--request-rate-range",
        metavar="START:END:STEP",
        help="open loop: so many requests per second; latency counts from the scheduled time",
    )
    add(
        "--request-distribution",
        choices=schedule.DISTRIBUTIONS,
        default="constant",
        help="of an open loop's send times",
    )
    add("-b", type=whole, default=1, metavar="ROWS", help="rows per request (default 1)")
    add("-p", "--measurement-interval", type=positive, default=5000.0, metavar="MS", help="per level (default 5000)")
    add(
        "--request-count",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="requests per level, in place of the interval",
    )
    add(
        "--warmup-request-count",
        type=_number(int, 0),
        default=None,
        metavar="N",
        help="answered before each level is measured (default: twice what is in flight, at least 10)",
    )
    add("-t", "--client-timeout", type=positive, default=60.0, metavar="S", help="seconds per request (default 60)")

    add = parser.add_argument_group("what to send").add_argument
    add(
        "--input-data",
        default="random",
        metavar="random|zero|FILE",
        help="FILE: .npz with an array per input, first axis the samples; or perf_analyzer's JSON (default random)",
    )
    add(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        metavar="NAME:D1,D2",
        help="sizes of an input with variable dimensions, without the batch dimension; repeatable",
    )
    add(
        "--input-range",
        action="append",
        default=[],
        type=_range,
        metavar="NAME:LOW:HIGH",
        help="of random values, both ends included for whole numbers (default: 0 to 1 for floats, 0 to 99 for "
        "integers, 0 to 255 for UINT8; attention_mask is 1, token_type_ids 0); repeatable",
    )
    add(
        "--string-length",
        type=whole,
        default=STRING_LENGTH,
        metavar="N",
        help=f"of random BYTES (default {STRING_LENGTH})",
    )
    add(
        "--seed",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="of random inputs and of poisson send times (default 0)",
    )

    add = parser.add_argument_group("what to report").add_argument
    add("--percentile", type=_percentile, metavar="P", help="one more percentile of the latency, e.g. 75 or 99.99")
    add("-f", type=path, metavar="FILE", help="write a CSV file, one row per target and level")
    add("--json", type=path, metavar="FILE", help="write everything as JSON (schema: tests/load/result.py)")
    add("--html", type=path, metavar="FILE", help="write a page with plots")
    add(
        "--flame",
        type=path,
        metavar="FILE",
        help="write a flame graph (SVG) of the server's process during the last level, whose figures suffer (a third "
        "to a half less throughput); the server must be on this host and run Python",
    )
    add("--no-progress", action="store_true", help="no progress display")
    return parser


def _number(kind: type[int] | type[float], least: float, *, open_end: bool = False) -> Callable[[str], Any]:
    name = "a whole number" if kind is int else "a number"
    limit = f"above {least:g}" if open_end else f"of at least {least:g}"

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = None
        if value is None or not (least < value < math.inf if open_end else least <= value < math.inf):
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} {limit}")
        return value

    return read


def _percentile(text: str) -> float:
    value: float = _number(float, 0, open_end=True)(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is above 100")
    return value


def _target(text: str) -> Address:
    found = TARGET.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not [LABEL=]MODEL[:VERSION]@HOST:PORT")
    return Address(found["label"] or found["model"], found["model"], found["version"] or "", found["url"])


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    # From the right: an input's name may hold colons, as TensorFlow's `serving_default:0` does.
    name, _, sizes = text.rpartition(":")
    if not name or not re.fullmatch(r"\d{1,18}(,\d{1,18})*", sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:D1,D2 with whole numbers")
    return name, tuple(int(size) for size in sizes.split(","))


def _range(text: str) -> tuple[str, tuple[float, float]]:
    try:
        name, low, high = text.rsplit(":", 2)
        bounds = tuple(int(bound) if re.fullmatch(r"-?\d{1,20}", bound) else float(bound) for bound in (low, high))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:LOW:HIGH") from None
    if not name or not -math.inf < bounds[0] <= bounds[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:LOW:HIGH with LOW not above HIGH")
    return name, (bounds[0], bounds[1])
