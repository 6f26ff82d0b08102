"""Run a job's passes: check first, then fold the artifact over them, each step resumable from its checkpoint."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from compressor import checkpoint, data, host, interface, load
from compressor.artifact import Artifact, Kind
from compressor.errors import JobError, PassError
from compressor.fields import Where
from compressor.functions import one_line
from compressor.job import Job
from compressor.passes.base import Context, Host, Outcome, Pass
from compressor.progress import Teller
from protos.card import Step

LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "torch",
    "transformers",
    "numpy",
    "demiglace",
)


@dataclass(frozen=True, slots=True)
class Made:
    """What the passes gave: the untouched original and the result, both as ONNX files, and the hash of what went in."""

    baseline: Artifact
    result: Artifact
    inputs_sha256: Mapping[str, str]
    """Of the source and the recipe, and of the calibration and evaluation samples where there are any."""


def check(job: Job) -> Pass | None:
    """Prove that the chain of passes fits together, before anything is loaded. Raises RecipeError.

    The answer is the pass that turns a torch source into ONNX: the baseline is what that one alone makes of it.
    """
    where = Where(job.recipe, "pass")
    kind = load.kind(job.source)
    came, exporter = f"the source is {kind.value}", None
    for i, one in enumerate(job.passes):
        if one.takes is not kind:
            hint = "; put export_onnx before it" if kind is Kind.TORCH else "; put it before export_onnx"
            hint = hint if load.kind(job.source) is Kind.TORCH else "; an ONNX source stays ONNX"
            raise where.at(i).fault(f"{one.name} takes a model of kind {one.takes.value}, but {came}{hint}")
        if one.needs_calibration and job.data.calibration is None:
            raise where.at(i).fault(f"{one.name} needs samples to calibrate on; data.calibration is missing")
        if one.takes is Kind.TORCH and one.gives is Kind.ONNX:
            exporter = exporter or one
        kind, came = one.gives, f"{one.name} gives {one.gives.value}"
    if kind is not Kind.ONNX:
        raise where.fault(f"the last model is of kind {kind.value}; add export_onnx, only ONNX can be served")
    return exporter


class Runner:
    """One run of a job. Owns the checkpoints and the source, which is loaded only when a pass really needs it."""

    def __init__(self, job: Job, work: Path, teller: Teller) -> None:
        self.job = job
        self.exporter = check(job)
        self.store = checkpoint.Store(work / job.name)
        self.teller = teller
        self.host: Host = host.detect()
        self.used: set[str] = set()
        self.told: set[str] = set()
        self.current = ""
        """The pass at work, for whoever has to say where a run was stopped."""

    @cached_property
    def source_sha256(self) -> str:
        return load.fingerprint(self.job)

    @cached_property
    def digests(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of each calibration sample and each held-out one. Raises RecipeError where a sample is among both."""
        tables = self.job.data
        calibration = data.digests(tables.calibration, "calibration", self.job.recipe, self.job.seed)
        held_out = data.digests(tables.evaluation, "evaluation", self.job.recipe, self.job.seed)
        data.check_disjoint(calibration, held_out, Where(self.job.recipe, "data.evaluation"))
        return calibration, held_out

    def source(self) -> Artifact:
        """The untouched model, loaded anew, and the data looked at: does it fit?"""
        with self.teller.stage("load the source"):
            artifact = load.load(self.job)
            for which in ("calibration", "evaluation"):
                if (stream := self.samples(which, artifact)) is not None:
                    stream.check_first()
        return artifact

    def samples(self, which: str, artifact: Artifact) -> data.Samples | None:
        """The stream of `[data]`'s table `which` for a model."""
        return data.samples(getattr(self.job.data, which), which, self.job.recipe, artifact, self.job.seed)

    def run(self) -> Made:
        """All passes, or those that were not finished before. Raises JobError."""
        calibration, held_out = self.digests
        result = self.fold(self.job.passes, calibration)
        if self.exporter is not None:
            baseline = self.fold((self.exporter,), calibration)
        elif self.job.passes:
            baseline = self.source()
        else:
            baseline = result
        self.store.keep_only(self.used)
        went_in = {"source": self.source_sha256, "recipe": self.job.recipe_sha256}
        for which, digests in (("calibration", calibration), ("evaluation", held_out)):
            if digests:
                went_in[which] = data.digest(digests)
        return Made(baseline, result, went_in)

    def fold(self, passes: Sequence[Pass], calibration: tuple[str, ...]) -> Artifact:
        """The source through these passes, from the last one whose checkpoint is there."""
        names = list(self._names(passes, calibration))
        self.used.update(names)
        done = next((i for i in range(len(passes), 0, -1) if self.store.has(names[i - 1])), 0)
        artifact = self.store.load(names[done - 1], self._module) if done else self.source()
        if artifact is None:
            raise PassError(f"{self.store.folder / names[done - 1]}: the checkpoint changed while it was read")
        for name, step in zip(names, artifact.trail, strict=False):
            if name not in self.told:
                self.teller.line(f"{step.name}: done before ({step.seconds:.1f} s)")
                self.told.add(name)
        for one, name in zip(passes[done:], names[done:], strict=True):
            with self._about(one):
                artifact = self._apply(one, name, artifact)
        return artifact

    def _apply(self, one: Pass, name: str, before: Artifact) -> Artifact:
        self.current = one.name
        started = time.monotonic()
        with self.teller.stage(one.name) as report, self.store.staged() as folder:
            folder.mkdir()
            context = Context(
                folder, self.host, self.samples("calibration", before), self.job.insist, self.job.seed, report
            )
            outcome = self._transform(one, before, context)
            after = outcome.artifact
            interface.ensure(before, after, one.gives, one.name)
            one.ensures(before, after, context)
            step = Step(one.name, _plain(parameters(one)), time.monotonic() - started, _plain(outcome.effect))
            kept = self.store.commit(folder, name, after.became(trail=(*before.trail, step)))
            self.told.add(name)
        for what, value in outcome.effect.items():
            self.teller.line(f"  {what}: {value:.4g}" if isinstance(value, float) else f"  {what}: {value}")
        self.current = ""
        return kept

    @contextmanager
    def _about(self, one: Pass) -> Iterator[None]:
        """Any error of a pass says in one line which table of the recipe it is about."""
        place = f"{self.job.recipe}: pass[{self.job.passes.index(one)}]"
        try:
            yield
        except JobError as error:
            if str(error).startswith(f"{self.job.recipe}: "):
                raise
            raise type(error)(f"{place}: {error}") from error
        except Exception as error:
            raise PassError(f"{place}: {one.name}: {one_line(error)}") from error

    def _transform(self, one: Pass, before: Artifact, context: Context) -> Outcome:
        one.requires(before, context)
        return one.apply(before, context)

    def _module(self) -> Any:
        return self.source().module

    def _names(self, passes: Sequence[Pass], calibration: tuple[str, ...]) -> Iterator[str]:
        """Folder names: everything that a pass's result depends on is in the key."""
        parts: list[Any] = [
            self.source_sha256,
            self.job.seed,
            self.job.insist,
            sorted(self.host.flags),
            self.host.gpu,
            versions(),
            _code(),
        ]
        for one in passes:
            parts = [*parts, one.name, parameters(one), data.digest(calibration) if one.needs_calibration else None]
            yield f"{one.name}-{checkpoint.key(parts)}"


def parameters(one: Pass) -> dict[str, Any]:
    """A pass's parameters by name."""
    return asdict(one)  # type: ignore[call-overload,no-any-return]


def _plain(values: Any) -> Any:
    """As it comes back from a checkpoint, so that a resumed job has the very same trail."""
    return json.loads(json.dumps(values, default=str))


def versions() -> dict[str, str]:
    """Of the libraries that the result depends on, where they are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def _code() -> str:
    """Hash of the passes' own code, so that a corrected pass is run again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path.parent.name in ("passes", "numerics"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
