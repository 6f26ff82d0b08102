"""One job from recipe to published entry: passes, quality, latency, budget, report, publish, in this order."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

from compressor import budget, evaluate, load, measure, onnx_file, padding, pipeline, publish, report
from compressor.artifact import Artifact
from compressor.budget import Measured, Padded, Verdict
from compressor.errors import OverBudget, Refused
from compressor.fields import Where
from compressor.job import Job
from compressor.pipeline import Made
from compressor.progress import Teller
from protos.card import CardError, Latency
from protos.model_config import ConfigError
from protos.repository import RepositoryError


def check(job: Job) -> None:
    """All that can be known to be wrong before anything is loaded. Raises RecipeError."""
    pipeline.check(job)


def run(job: Job, options: Namespace, teller: Teller | None = None) -> int:
    """The exit status, 0; everything else is raised as a JobError, its report written first."""
    teller = teller or Teller()
    if options.no_latency:
        job = dataclasses.replace(job, evaluate=dataclasses.replace(job.evaluate, latency=None, throughput=None))
    runner = pipeline.Runner(job, options.work, teller)
    if options.fresh:
        runner.store.clear()
    made = runner.run()
    publish.config(job.name, made.result, job.publish, Where(job.recipe, "publish"))
    measured = _measure(job, made, teller)
    if job.publish is not None:
        measured = _pad(job, runner, made, measured, teller)
    verdicts = budget.judge(job.budget, measured)
    broken = [verdict for verdict in verdicts if not verdict.kept]
    slower = None if job.insist else budget.slower_as_served(job.budget, measured)
    unchecked = [key for key in job.budget if key not in {verdict.key for verdict in verdicts}]
    published: tuple[publish.Published, ...] = ()
    if not (broken or slower or unchecked or options.no_publish or job.publish is None):
        published = _publish(job, made, measured)
    outcome = _outcome(broken, slower, unchecked, published)
    _tell(report.make(job, outcome, made.result, measured, verdicts, published), options.reports, teller)
    if broken:
        raise OverBudget(
            f"{job.recipe}: over budget, nothing is published: "
            + "; ".join(f"budget.{verdict.text}" for verdict in broken)
        )
    if slower:
        raise Refused(
            f"{job.recipe}: {slower}; nothing is published; set a limit on latency in the budget, or "
            f"insist = true, to have it all the same"
        )
    return 0


def _measure(job: Job, made: Made, teller: Teller) -> Measured:
    assert made.baseline.path is not None
    assert made.result.path is not None
    quality = evaluate.Quality((), {}, 0)
    if job.data.evaluation is not None:
        with teller.stage("evaluate on held-out samples") as progress:
            quality = evaluate.evaluate(job, made.baseline, made.result, progress)
    latency: tuple[Latency, ...] = ()
    throughput: budget.Throughput | None = None
    if job.evaluate.latency is not None or job.evaluate.throughput is not None:
        with teller.stage("measure as served") as progress:
            latency, throughput = measure.measure(job, made.baseline, made.result, progress)
    return Measured(
        quality.metrics,
        quality.output_error,
        onnx_file.size(made.baseline.path),
        onnx_file.size(made.result.path),
        latency,
        throughput,
    )


def _pad(job: Job, runner: pipeline.Runner, made: Made, measured: Measured, teller: Teller) -> Measured:
    filled = load.filled(job)

    def prove(artifact: Artifact) -> Padded:
        return padding.prove(artifact, filled, runner.samples("evaluation", artifact), job.seed)

    with teller.stage("prove what may be padded"):
        return dataclasses.replace(measured, baseline_padding=prove(made.baseline), padding=prove(made.result))


def _publish(job: Job, made: Made, measured: Measured) -> tuple[publish.Published, ...]:
    try:
        return publish.publish(job, made.baseline, made.result, measured, made.inputs_sha256)
    except (RepositoryError, ConfigError, CardError, OSError) as error:
        raise Where(job.recipe, "publish").fault(str(error)) from error


def _outcome(
    broken: list[Verdict], slower: str | None, unchecked: list[str], published: tuple[publish.Published, ...]
) -> str:
    if broken:
        return "over budget: nothing is published"
    if slower:
        return f"refused: {slower}; nothing is published"
    if unchecked:
        return f"not published: not measured are the limits {', '.join(unchecked)}"
    return "published" if published else "not published"


def _tell(found: report.Report, folder: Path, teller: Teller) -> None:
    teller.console.print(report.table(found))
    for verdict in found.verdicts:
        teller.line(f"budget {verdict.text}")
    for one in found.published:
        state = "published" if one.new else "already published"
        teller.line(f"{state}: {one.name} version {one.version} ({one.path})")
    files = report.write(found, folder)
    teller.line(f"{found.outcome}; report: {', '.join(str(file) for file in files)}")
