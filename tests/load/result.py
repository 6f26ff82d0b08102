"""What a load test found: frozen dataclasses, their JSON and CSV forms, and the JSON reader.

Other programs start `python -m tests.load … --json FILE` as a child and read FILE; this page is its schema (version 1).
One object per run; times are in milliseconds unless the name ends in `_s`; a value that was not measured is null:

    {"schema": 1, "tool": "0.1.0", "started": "2026-01-31T12:00:00+00:00", "command": ["-m", "minilm", …],
     "mode": "concurrency" | "request_rate", "interrupted": false, "host": {"cpu": …, "cores": …, "python": …, …},
     "targets": [
       {"label": "minilm", "url": "127.0.0.1:8001", "model": "minilm", "version": "1", "platform": "onnxruntime_onnx",
        "server": "triton 2.60.0", "inputs": {"input_ids": "INT64 [1,128]", …},
        "levels": [
          {"load": 8, "concurrency": 8, "request_rate": null, "batch": 1,
           "requests": 1000, "succeeded": 1000, "errors": {"text": 3, …}, "duration_s": 5.0,
           "throughput": 200.0, "inferences": 200.0,
           "latency": {"min": …, "mean": …, "stddev": …, "p50": …, "p90": …, "p95": …, "p99": …, "p99_9": …, "max": …,
                       "extra": {"p75": …}} | null,
           "histogram": [[upper_ms, count], …],
           "lag": {as latency} | null,
           "client": {"cores_used": 0.4, "share": 0.2}, "client_limited": "reason" | null,
           "stages": {"queue": …, "collate": …, "compute": …, "split": …, "other": …, "wire": …} | null,
           "stages_note": "what to say against them, or why there are none" | null}]}]}

`throughput` is answers without an error per second within `duration_s`, `inferences` is that times the batch size.
`requests` are those that were sent (or due) in that time, whenever they were answered: the two counts differ by no
more than what was in flight at both ends. `lag` (open loop only) is how late the sender was against its own schedule;
latency is counted from the schedule, so it holds the lag already. `stages` is the average over all requests of the
level that were answered without an error, those of a warm-up that flows into it too, from sending to the whole answer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1

CONCURRENCY = "concurrency"
REQUEST_RATE = "request_rate"


@dataclass(frozen=True, slots=True)
class Spread:
    """How a set of times is spread, in milliseconds."""

    min: float
    mean: float
    stddev: float
    p50: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float
    extra: Mapping[str, float] = field(default_factory=dict)
    """Percentiles asked for by `--percentile` beyond the fixed ones, keyed as `p75`."""


@dataclass(frozen=True, slots=True)
class ClientCpu:
    """Processor time that the load test itself took."""

    cores_used: float
    """Processor seconds per second; 1.0 is one core busy all the time, about what one Python process can use."""
    share: float
    """`cores_used` over the number of cores this process may run on."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Where the time of an average request went, in milliseconds: together, what the client saw."""

    queue: float
    """Waiting for an instance and for others to share a batch with."""
    collate: float
    """Making the batch's inputs (Triton: compute_input)."""
    compute: float
    """The model's run (compute_infer)."""
    split: float
    """Making the answers out of the batch's outputs (compute_output)."""
    other: float
    """The rest of the server's own time: decoding and checks."""
    wire: float
    """The rest of what the client saw: both network stacks, HTTP/2, framing, encoding, and the client itself."""

    @property
    def total(self) -> float:
        return float(sum(getattr(self, name) for name in STAGES))


STAGES = tuple(part.name for part in fields(Stages))


@dataclass(frozen=True, slots=True)
class Level:
    """One load on one target: so many requests in flight, or so many per second."""

    load: float
    """The concurrency or the request rate, whichever the run's mode steps through."""
    concurrency: int | None
    request_rate: float | None
    batch: int
    requests: int
    """Requests sent, or due by the schedule, within the measurement; each was answered, with or without an error."""
    succeeded: int
    errors: Mapping[str, int]
    """Count by `STATUS: text`."""
    duration_s: float
    throughput: float
    """Succeeded requests per second."""
    inferences: float
    """Rows per second: `throughput` times `batch`."""
    latency: Spread | None
    """Of the succeeded requests; None when there were none."""
    histogram: tuple[tuple[float, int], ...]
    """(upper bound in ms, count) of the succeeded requests, bounds rising, empty bins left out at both ends only."""
    lag: Spread | None
    client: ClientCpu
    client_limited: str | None
    """Why the client rather than the server is likely to be the limit; None when nothing says so."""
    stages: Stages | None = None
    stages_note: str | None = None
    """What there is to say against `stages`, or why there are none."""


@dataclass(frozen=True, slots=True)
class Target:
    """One model on one server, with what was measured on it."""

    label: str
    url: str
    model: str
    version: str
    """As asked for; empty when the server chose."""
    platform: str
    server: str
    inputs: Mapping[str, str]
    """What was sent, `DATATYPE [shape]` by input name."""
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything one call of the tool found."""

    tool: str
    started: str
    """ISO 8601, UTC."""
    command: tuple[str, ...]
    mode: str
    interrupted: bool
    host: Mapping[str, str]
    targets: tuple[Target, ...]

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(level for target in self.targets for level in target.levels)


def to_json(run: Run) -> str:
    return json.dumps({"schema": SCHEMA, **asdict(run)}, indent=1) + "\n"


def from_json(text: str) -> Run:
    """The run that `to_json` wrote. Raises ValueError for another schema or a missing field."""
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"load test result: schema {found!r} is unknown, expected {SCHEMA}")
    try:
        del data["schema"]
        targets = tuple(_target(target) for target in data.pop("targets"))
        return Run(**{**data, "command": tuple(data["command"])}, targets=targets)
    except (KeyError, TypeError) as error:
        raise ValueError(f"load test result: not a run of schema {SCHEMA}: {error}") from error


def read(path: Path) -> Run:
    """Raises OSError, ValueError."""
    return from_json(path.read_text(encoding="utf-8"))


def _target(data: dict[str, Any]) -> Target:
    return Target(**{**data, "levels": tuple(_level(level) for level in data["levels"])})


def _level(data: dict[str, Any]) -> Level:
    return Level(
        **{
            **data,
            "latency": _spread(data["latency"]),
            "lag": _spread(data["lag"]),
            "client": ClientCpu(**data["client"]),
            "histogram": tuple((upper, count) for upper, count in data["histogram"]),
            "stages": None if data["stages"] is None else Stages(**data["stages"]),
        }
    )


def _spread(data: dict[str, Any] | None) -> Spread | None:
    return None if data is None else Spread(**data)


COLUMNS = (
    "Target", "Model", "Version", "Url", "Concurrency", "Request rate", "Batch", "Requests", "Succeeded", "Failed",
    "Duration s", "Throughput/s", "Inferences/s", "Min ms", "Mean ms", "p50 ms", "p90 ms", "p95 ms", "p99 ms",
    "p99.9 ms", "Max ms", "Lag p99 ms", "Client cores", "Client share", "Client limited",
    *(f"{name.capitalize()} ms" for name in STAGES), "Stages note",
)  # fmt: skip


def rows(run: Run) -> Iterable[dict[str, str | float | int]]:
    """One row per target and level, keyed by COLUMNS; empty text where nothing was measured."""
    for target in run.targets:
        for level in target.levels:
            times = level.latency
            values: list[Any] = [
                target.label, target.model, target.version, target.url, level.concurrency, level.request_rate,
                level.batch, level.requests, level.succeeded, level.requests - level.succeeded,
                level.duration_s, level.throughput, level.inferences,
            ]  # fmt: skip
            shown = ("min", "mean", "p50", "p90", "p95", "p99", "p99_9", "max")
            values += [None if times is None else getattr(times, name) for name in shown]
            values += [level.lag and level.lag.p99, level.client.cores_used, level.client.share, level.client_limited]
            values += [None if level.stages is None else getattr(level.stages, name) for name in STAGES]
            values.append(level.stages_note)
            yield {name: "" if value is None else value for name, value in zip(COLUMNS, values, strict=True)}


def write_json(run: Run, path: Path) -> None:
    path.write_text(to_json(run), encoding="utf-8")


def write_csv(run: Run, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(run))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of `write_csv`, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
