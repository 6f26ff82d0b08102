"""h2load as the load: one message prepared once, sent over and over by a C client that leaves the cores to the server.

h2load is Debian's package `nghttp2-client`. It knows no gRPC: a failed call is HTTP 200 as well. An answer is taken
for good when it has the length of the one that was looked at first, since an error has no message at all; a run with
any other answer raises. The processor time is that of the server's process and all its children.
"""

from __future__ import annotations

import hashlib
import math
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from tests.load.client import MODEL_INFER, OPTIONS
from tests.peers.peer import Question, Running

TIMEOUT_S = 180.0
WARM_UP_AT_LEAST = 8
WARM_UP_SHARE = 0.15
"""A warm-up lasts at least this part of the measurement."""
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s), ([\d.]+) req/s")
_COUNTS = re.compile(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded")
_DATA = re.compile(r"\((\d+)\) data$", re.MULTILINE)


class LoadFailed(RuntimeError):
    """The run is no measurement: h2load ended badly, or not every request was answered as it should be."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What to ask, over and over: a request in a file, and how a good answer can be told."""

    url: str
    """`http://host:port/path`."""
    file: Path
    headers: tuple[str, ...]
    answer: int | None
    """Bytes of a good answer; None where the HTTP status tells (no gRPC)."""
    http1: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests in flight, over so many connections; `rate` makes it an open loop of requests per second, which
    h2load sends in lumps, one every 10 ms."""

    in_flight: int
    connections: int = 1
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    requests: int
    seconds: float
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Processor microseconds per request of the server and its children."""
    client_cores: float
    """Processor seconds per second that h2load took itself."""
    other_cores: float
    """The same of all else on this machine, and of the hypervisor's other guests: how far this run was disturbed."""


def prepared(folder: Path, running: Running, question: Question) -> Prepared:
    """The question in a file below `folder`. Over gRPC it is asked once, to see how long a good answer is."""
    if running.http:
        url, headers = f"http://{running.address}/{question.model}", ("content-type: application/json",)
        return Prepared(url, _file(folder, question.as_json()), headers, None, http1=True)
    return raw_prepared(folder, running.address, MODEL_INFER, question.as_grpc())


def raw_prepared(folder: Path, address: str, path: str, message: bytes) -> Prepared:
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        answer = channel.unary_unary(path)(message, timeout=TIMEOUT_S)
    headers = ("content-type: application/grpc", "te: trailers")
    return Prepared(f"http://{address}{path}", _file(folder, framed(message)), headers, len(framed(answer)))


def _file(folder: Path, body: bytes) -> Path:
    file = folder / hashlib.sha256(body).hexdigest()[:16]
    file.write_bytes(body)
    return file


def framed(message: bytes) -> bytes:
    """With gRPC's prefix: not compressed, and the length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def measure(
    prepared: Prepared, load: Load, seconds: float, server: psutil.Process, count: int | None = None
) -> Measured:
    """Warm up, then `seconds` of load: as many requests as the warm-up says, or `count`. Raises LoadFailed."""
    if count is None:
        count = max(2 * load.in_flight, round(seconds * _rate(prepared, load, server, seconds)))
    return run(prepared, load, count, server)


def _rate(prepared: Prepared, load: Load, server: psutil.Process, seconds: float) -> float:
    """Requests per second, by runs that grow until one takes long enough to tell; warms the server up as well."""
    if load.rate is not None:
        return load.rate
    count = max(WARM_UP_AT_LEAST, 2 * load.in_flight)
    while True:
        found = run(prepared, load, count, server)
        if found.seconds > WARM_UP_SHARE * seconds:
            return found.rate
        # straight to what is long enough once that can be told, so that a warm-up is two or three runs
        count *= 2 if found.seconds < 0.01 else math.ceil(1.5 * WARM_UP_SHARE * seconds / found.seconds)


def run(prepared: Prepared, load: Load, count: int, server: psutil.Process) -> Measured:
    with tempfile.NamedTemporaryFile(suffix=".tsv") as log:
        command = _command(prepared, load, count, log.name)
        spent, own, whole, wall = cpu_seconds(server), _children_seconds(), _machine_seconds(), time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        spent, own = cpu_seconds(server) - spent, _children_seconds() - own
        whole, wall = _machine_seconds() - whole, time.monotonic() - wall
        if done.returncode:
            raise LoadFailed(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()}")
        seconds = check(done.stdout, count, prepared)
        took = sorted(int(line.split(b"\t")[2]) for line in log.read().splitlines())
    rate = count / seconds
    at = [took[min(len(took) - 1, int(len(took) * share))] / 1e3 for share in (0.5, 0.99)]
    others = max(0.0, whole - spent - own) / wall
    return Measured(count, seconds, rate, *at, spent / count * 1e6, own / seconds, others)


@contextmanager
def running(prepared: Prepared, load: Load) -> Iterator[None]:
    """Under this load until the end of the context, which nothing is measured of."""
    command = _command(prepared, load, 1 << 30, None)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise LoadFailed(f"{' '.join(command)} ended early, with status {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def _command(prepared: Prepared, load: Load, count: int, log: str | None) -> list[str]:
    program = shutil.which("h2load")
    if program is None:
        raise LoadFailed("h2load is not there; it comes with Debian's and Ubuntu's package nghttp2-client")
    # over HTTP/1.1 h2load sends one request per connection at a time
    connections = load.in_flight if prepared.http1 else load.connections
    command = [program, "-n", str(count), "-c", str(connections), "-m", str(load.in_flight // connections)]
    if prepared.http1:
        command.append("--h1")
    if load.rate is not None:
        command += ["--rps", f"{load.rate / connections:g}"]
    if log is not None:
        command += ["--log-file", log]
    for header in prepared.headers:
        command += ["-H", header]
    return [*command, "-d", str(prepared.file), prepared.url]


def check(output: str, count: int, prepared: Prepared) -> float:
    """The seconds that a run took, once it is certain that every request had a good answer. Raises LoadFailed."""
    finished, counts, data = (pattern.search(output) for pattern in (_FINISHED, _COUNTS, _DATA))
    if not finished or not counts or not data:
        raise LoadFailed(f"h2load {prepared.url}: not the output of a finished run:\n{output[-800:]}")
    good, received = int(counts[3]), int(data[1])
    if good != count:
        raise LoadFailed(f"h2load {prepared.url}: {good} of {count} requests were answered with HTTP status 200")
    if prepared.answer is not None and received != count * prepared.answer:
        raise LoadFailed(
            f"h2load {prepared.url}: {count} answers have {received} bytes together, not {prepared.answer} each: "
            "some are gRPC errors"
        )
    return float(finished[1]) * _UNITS[finished[2]]


def resident_mib(server: psutil.Process) -> float:
    """Of a process and all below it."""
    return sum(process.memory_info().rss for process in (server, *server.children(recursive=True))) / 2**20


def cpu_seconds(server: psutil.Process) -> float:
    """Of a process and all below it; a child that ends meanwhile counts no more."""
    spent = 0.0
    for process in (server, *server.children(recursive=True)):
        try:
            # the clock of another process (clock_getcpuclockid(3)); /proc counts in steps of 10 ms
            spent += time.clock_gettime((~process.pid << 3) | 2)
        except OSError:
            continue
    return spent


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_seconds() -> float:
    # without interrupts: the loopback's network work is done in them, on behalf of the two that are measured
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + getattr(times, "steal", 0.0)
