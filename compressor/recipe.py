"""Read a recipe: TOML in, a `Job` out, or one line that says what is wrong where.

A recipe's paths to what goes in (`source.huggingface` folders, `source.state`, `source.onnx`, `.npz` samples) are
relative to the recipe's own folder; `publish.repository` is relative to the working directory, because what goes out
belongs to whoever runs the job. Python functions are named `module:function`; the module is looked for among the
installed ones, in the working directory and beside the recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor import budget
from compressor.errors import RecipeError
from compressor.fields import Where, build, one_of, show, suggest
from compressor.job import Data, Evaluation, Job, Publication, SampleSet, Source
from compressor.metrics import METRICS, metric_name
from compressor.passes import REGISTRY
from compressor.passes.base import Pass
from compressor.wrappers import WRAPPERS
from protos import repository

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
LARGEST = 1 << 20
"""Bytes of a recipe; more is some other file."""
PACKAGED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class _Recipe:
    name: str
    source: Source
    data: Data = field(default_factory=Data)
    pass_: tuple[Mapping[str, Any], ...] = ()
    evaluate: Evaluation = field(default_factory=Evaluation)
    budget: Mapping[str, float] = field(default_factory=dict)
    publish: Publication | None = None
    seed: int = field(default=0, metadata={"minimum": 0, "maximum": 2**32 - 1})
    insist: bool = False


def load(path: Path) -> Job:
    """The job that a recipe file describes; a bare name means a packaged recipe. Raises RecipeError."""
    file = find(path)
    text = _read(file)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file}: not valid TOML: {error}") from error
    top = Where(file)
    recipe = build(_Recipe, table, top)
    try:
        repository.check_name(recipe.name)
    except repository.RepositoryError as error:
        raise top.at("name").fault(str(error)) from error
    _check_metrics(recipe, top)
    _check_budget(recipe, top)
    return Job(
        name=recipe.name,
        recipe=file,
        recipe_sha256=hashlib.sha256(text.encode()).hexdigest(),
        source=_source(recipe.source, top.at("source")),
        data=_data(recipe.data, top.at("data")),
        passes=tuple(_pass(table, top.at("pass").at(i)) for i, table in enumerate(recipe.pass_)),
        evaluate=recipe.evaluate,
        budget=recipe.budget,
        publish=_publication(recipe, top.at("publish")),
        seed=recipe.seed,
        insist=recipe.insist,
    )


def packaged() -> tuple[str, ...]:
    """Names of the recipes that come with Demiglace."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.toml")))


def find(path: Path) -> Path:
    """The recipe's file, absolute. Raises RecipeError where there is none."""
    if path.is_file():
        return path.resolve()
    ready = PACKAGED / f"{path}.toml"
    if path.parent == Path() and path.name in packaged():
        return ready
    what = "is a folder" if path.is_dir() else "no such file"
    raise RecipeError(
        f"{path}: {what}; a recipe is a TOML file, or one of those packaged{suggest(str(path), packaged())}"
    )


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise RecipeError(f"{file}: {file.stat().st_size} bytes; a recipe has at most {LARGEST}")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text (byte {error.start}); a recipe is a TOML file") from error
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}") from error


def _source(source: Source, where: Where) -> Source:
    given = [key for key in ("huggingface", "factory", "onnx") if getattr(source, key) is not None]
    if len(given) != 1:
        raise where.fault(f"must have exactly one of huggingface, factory, onnx; has {', '.join(given) or 'none'}")
    belongs = {
        "wrapper": "huggingface",
        "inputs": "huggingface",
        "state": "factory",
        "arguments": "factory",
        "outputs": "factory",
    }
    for key, owner in belongs.items():
        if getattr(source, key) and owner != given[0]:
            raise where.at(key).fault(f"goes with {owner}, but the source is {given[0]}")
    if source.huggingface is not None:
        if source.wrapper is None:
            raise where.at("wrapper").fault(f"missing; must be {one_of(WRAPPERS)}")
        if source.wrapper not in WRAPPERS:
            raise where.at("wrapper").fail(source.wrapper, one_of(WRAPPERS))
    if source.factory is not None and not FUNCTION.fullmatch(source.factory):
        raise where.at("factory").fail(source.factory, '"module:function"')
    if source.state is not None and source.state.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise where.at("state").fail(str(source.state), "a .safetensors, .pt, .pth or .bin file")
    return dataclasses.replace(
        source, state=_file(source.state, where.at("state")), onnx=_file(source.onnx, where.at("onnx"))
    )


def _file(path: Path | None, where: Where) -> Path | None:
    if path is None:
        return None
    whole = (where.file.parent / path.expanduser()).resolve()
    if not whole.is_file():
        raise where.fail(str(path), f"a file that is there ({whole} is not)")
    return whole


def _data(data: Data, where: Where) -> Data:
    return Data(_samples(data.calibration, where.at("calibration")), _samples(data.evaluation, where.at("evaluation")))


def _samples(samples: SampleSet | None, where: Where) -> SampleSet | None:
    if samples is None:
        return None
    spec = samples.samples
    if spec.endswith(".npz"):
        return dataclasses.replace(samples, samples=str(_file(Path(spec), where.at("samples"))))
    if spec != "random" and not FUNCTION.fullmatch(spec):
        raise where.at("samples").fail(spec, '"module:function", a .npz file or "random"')
    if samples.sizes and spec != "random":
        raise where.at("sizes").fault(f'goes with samples = "random", which is {show(spec)} here')
    return samples


def _pass(table: Mapping[str, Any], where: Where) -> Pass:
    if "name" not in table:
        raise where.at("name").fault(f"missing; must be {one_of(REGISTRY)}")
    name = table["name"]
    if not isinstance(name, str) or name not in REGISTRY:
        raise where.at("name").fault(f"unknown pass {show(name)}{suggest(str(name), REGISTRY)}")
    parameters = {key: value for key, value in table.items() if key != "name"}
    return build(REGISTRY[name], parameters, Where(where.file, where.path, about=f"the pass {name}"))


def _check_metrics(recipe: _Recipe, where: Where) -> None:
    place = where.at("evaluate").at("metrics")
    for i, metric in enumerate(recipe.evaluate.metrics):
        if metric not in METRICS and not FUNCTION.fullmatch(metric):
            raise place.at(i).fault(f'unknown metric {show(metric)}{suggest(metric, METRICS)}, or "module:function"')
    names = [metric_name(metric) for metric in recipe.evaluate.metrics]
    if len(set(names)) < len(names):
        raise place.fail(list(recipe.evaluate.metrics), "of different names")
    if names and recipe.data.evaluation is None:
        raise where.at("data").at("evaluation").fault("missing; evaluate.metrics needs held-out samples")


def _check_budget(recipe: _Recipe, where: Where) -> None:
    evaluate = recipe.evaluate
    allowed = budget.allowed_keys(
        evaluate.metrics,
        evaluated=recipe.data.evaluation is not None,
        latency=evaluate.latency is not None,
        throughput=evaluate.throughput is not None,
    )
    for key in recipe.budget:
        if key not in allowed:
            everything = (*budget.LATENCY_KEYS, *budget.THROUGHPUT_KEYS, *budget.EVALUATION_KEYS)
            why = "; the recipe does not measure it, see evaluate and data" if key in everything else ""
            raise where.at("budget").at(key).fault(f"unknown limit{why}{suggest(key, allowed)}")


def _publication(recipe: _Recipe, where: Where) -> Publication | None:
    publish = recipe.publish
    if publish is None:
        return None
    if publish.baseline is not None:
        try:
            repository.check_name(publish.baseline)
        except repository.RepositoryError as error:
            raise where.at("baseline").fault(str(error)) from error
        if publish.baseline == recipe.name:
            raise where.at("baseline").fail(publish.baseline, f"another name than the entry's, {show(recipe.name)}")
    largest = publish.max_batch_size
    plan = recipe.evaluate.latency
    if largest is not None and plan is not None and max(plan.batches, default=1) > max(largest, 1):
        raise where.at("max_batch_size").fail(
            largest, f"at least the largest batch of evaluate.latency, {max(plan.batches)}"
        )
    batching = publish.dynamic_batching
    if batching is not None and largest is not None and any(n > largest for n in batching.preferred_batch_size):
        raise (
            where.at("dynamic_batching")
            .at("preferred_batch_size")
            .fail(list(batching.preferred_batch_size), f"at most publish.max_batch_size, {largest}")
        )
    return dataclasses.replace(publish, repository=(Path.cwd() / publish.repository.expanduser()).resolve())
