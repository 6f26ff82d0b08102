"""Latency and throughput as served: original and result in one temporary repository, a really started server, a really
started load test, the two models taking turns. Children are told by arguments and answer by files: nothing of theirs is
imported here."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compressor import data, publish
from compressor.artifact import Artifact, Axis
from compressor.budget import Throughput
from compressor.errors import JobError
from compressor.fields import Where
from compressor.interface import batched
from compressor.job import Job, LatencyPlan, ThroughputPlan
from compressor.passes.base import Sample
from compressor.progress import Report
from protos import repository
from protos.card import Latency

BASELINE, RESULT = "baseline", "result"
ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 180.0
"""From start to ready; a large model on a slow disk takes its time."""
SAMPLES = 64
WARMUP = 5
_PR_SET_PDEATHSIG = 1
# looked up here, because between fork and exec a child may hardly do more than call
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class MeasureError(JobError):
    """The server or the load test, started to measure, did not do its work."""


def measure(
    job: Job, baseline: Artifact, result: Artifact, report: Report
) -> tuple[tuple[Latency, ...], Throughput | None]:
    """What `evaluate.latency` and `evaluate.throughput` ask for. Raises MeasureError, RecipeError."""
    latency, throughput = job.evaluate.latency, job.evaluate.throughput
    if latency is None and throughput is None:
        return (), None
    batches = (*(latency.batches if latency else ()), *([throughput.batch] if throughput else ()))
    _check(job, result, batches)
    with tempfile.TemporaryDirectory(prefix="demiglace-measure-") as folder:
        root = Path(folder) / "repository"
        root.mkdir()
        for name, artifact in ((BASELINE, baseline), (RESULT, result)):
            entry = publish.config(name, artifact, job.publish, Where(job.recipe, "publish"))
            if entry.max_batch_size:
                entry = dataclasses.replace(entry, max_batch_size=max(entry.max_batch_size, *batches))
            repository.write(root, entry, publish.files(artifact))
        with _server(root) as address:
            load = _Load(job, result, address, Path(folder), report, _rounds(latency, throughput))
            rows = tuple(load.latency(latency, batch) for batch in latency.batches) if latency else ()
            return rows, load.throughput(throughput) if throughput else None


def _rounds(latency: LatencyPlan | None, throughput: ThroughputPlan | None) -> int:
    return (latency.rounds * len(latency.batches) if latency else 0) + (throughput.rounds if throughput else 0)


def _check(job: Job, artifact: Artifact, batches: Sequence[int]) -> None:
    where = Where(job.recipe, "evaluate")
    if not batched(artifact) and set(batches) != {1}:
        raise where.at("latency").at("batches").fail(list(batches), "[1]: the model has no free batch dimension")
    for plan, key in ((job.evaluate.latency, "latency"), (job.evaluate.throughput, "throughput")):
        for name, shape in plan.shapes.items() if plan else ():
            place = where.at(key).at("shapes").at(name)
            tensor = next((tensor for tensor in artifact.inputs if tensor.name == name), None)
            if tensor is None:
                raise place.fault(f"the model has no such input; it has {', '.join(t.name for t in artifact.inputs)}")
            dims = tensor.shape[1:] if batched(artifact) else tensor.shape
            if len(dims) != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(dims, shape, strict=False)):
                words = ", ".join(d.name if isinstance(d, Axis) else str(d) for d in dims)
                raise place.fail(list(shape), f"the shape of one row: [{words}]")


class _Load:
    """The load test against one started server."""

    def __init__(self, job: Job, artifact: Artifact, address: str, folder: Path, report: Report, rounds: int) -> None:
        self.job, self.artifact, self.address, self.folder = job, artifact, address, folder
        self.report, self.rounds, self.done = report, rounds, 0

    def latency(self, plan: LatencyPlan, batch: int) -> Latency:
        """p50 and p99 in ms, each the median over the rounds."""
        what = f"latency, batch {batch}"
        flags = ["--concurrency-range", "1", "-b", str(batch)]
        found = self._turns(plan.rounds, plan.requests, flags, plan.shapes, what)
        spread = {
            name: {p: statistics.median(level["latency"][p] for level in levels) for p in ("p50", "p99")}
            for name, levels in found.items()
        }
        return Latency(
            batch,
            plan.shapes,
            spread[BASELINE]["p50"],
            spread[BASELINE]["p99"],
            spread[RESULT]["p50"],
            spread[RESULT]["p99"],
        )

    def throughput(self, plan: ThroughputPlan) -> Throughput:
        """Rows per second, the median over the rounds."""
        flags = ["--concurrency-range", str(plan.concurrency), "-b", str(plan.batch)]
        found = self._turns(plan.rounds, plan.requests, flags, plan.shapes, f"throughput, {plan.concurrency} in flight")
        rates = {name: statistics.median(level["inferences"] for level in levels) for name, levels in found.items()}
        return Throughput(plan.concurrency, plan.batch, rates[BASELINE], rates[RESULT])

    def _turns(
        self, rounds: int, requests: int, flags: list[str], shapes: Mapping[str, tuple[int, ...]], what: str
    ) -> dict[str, list[dict[str, Any]]]:
        given = self._inputs(shapes)
        each = max(10, -(-requests // rounds))
        found: dict[str, list[dict[str, Any]]] = {BASELINE: [], RESULT: []}
        for _ in range(rounds):
            for name, levels in found.items():
                self.report(self.done, 2 * self.rounds, f"{what}: {name}")
                levels.append(self._once(name, [*flags, "--request-count", str(each), *given]))
                self.done += 1
        return found

    def _inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Held-out samples of these shapes where there are any; else made-up ones."""
        stream = data.samples(self.job.data.evaluation, "evaluation", self.job.recipe, self.artifact, self.job.seed)
        kept: list[Sample] = []
        for sample in stream() if stream is not None else ():
            wanted = shapes or {name: array.shape for name, array in (kept[0] if kept else sample).items()}
            if all(sample[name].shape == tuple(shape) for name, shape in wanted.items()) and (
                not kept or all(array.shape == kept[0][name].shape for name, array in sample.items())
            ):
                kept.append(sample)
            if len(kept) == SAMPLES:
                break
        if not kept or any(tensor.datatype.name == "BYTES" for tensor in self.artifact.inputs):
            return [
                part for name, shape in shapes.items() for part in ("--shape", f"{name}:{','.join(map(str, shape))}")
            ]
        file = self.folder / "samples.npz"
        np.savez(file, **{name: np.stack([sample[name] for sample in kept]) for name in kept[0]})  # type: ignore[arg-type]
        return ["--input-data", str(file)]

    def _once(self, model: str, flags: list[str]) -> dict[str, Any]:
        answer = self.folder / "load.json"
        answer.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "tests.load",
            "-m",
            model,
            "-u",
            self.address,
            *flags,
            "--warmup-request-count",
            str(WARMUP),
            "--json",
            str(answer),
            "--no-progress",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode != 0 or not answer.is_file():
            raise MeasureError(f"the load test of {model} ended with status {done.returncode}: {_last(done.stderr)}")
        level: dict[str, Any] = json.loads(answer.read_text())["targets"][0]["levels"][0]
        if level["errors"] or level["latency"] is None:
            raise MeasureError(f"the load test of {model} met errors: {level['errors']}")
        return level


@contextmanager
def _server(root: Path) -> Iterator[str]:
    """A started server, ready; the address of its gRPC listener. It is ended whatever happens here."""
    command = [
        sys.executable,
        "-m",
        "server",
        "--model-repository",
        str(root),
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
    ]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, preexec_fn=_end_with_parent
    )
    lines: list[str] = []
    settled = threading.Event()
    reader = threading.Thread(target=_follow, args=(child, lines, settled), daemon=True)
    reader.start()
    try:
        ready = settled.wait(START_TIMEOUT_S)
        found = re.search(r"^gRPC listening on (\S+)$", "\n".join(lines), re.MULTILINE)
        if not ready or found is None or child.poll() is not None:
            raise MeasureError(f"the server started to measure did not become ready: {_last(chr(10).join(lines))}")
        yield found[1]
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
        reader.join()
        assert child.stdout is not None
        child.stdout.close()


def _end_with_parent() -> None:
    """In the child: a job that is killed must not leave a server behind (Linux; elsewhere there is no such call)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _follow(child: subprocess.Popen[str], lines: list[str], settled: threading.Event) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("ready"):
            settled.set()
    settled.set()


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:400] or "it said nothing"
