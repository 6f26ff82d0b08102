"""Passes in a row: what is checked before, what is kept of them, and going on where a run was stopped."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from compressor import interface, pipeline, recipe
from compressor.artifact import Artifact, Kind
from compressor.errors import JobError, PassError, RecipeError
from compressor.passes import REGISTRY
from compressor.passes.base import Context, Outcome
from compressor.pipeline import Made, Runner
from compressor.progress import Teller
from tests.compressor import tiny

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, path: Path) -> tuple[Made, str]:
    """The job's passes, and what was told on the way."""
    told = io.StringIO()
    made = Runner(recipe.load(path), folder / "work", Teller(Console(file=told, highlight=False))).run()
    return made, told.getvalue()


def chain(folder: Path, *passes: str) -> Path:
    path = folder / "recipe.toml"
    tables = "".join(f'[[pass]]\nname = "{name}"\n' for name in passes)
    path.write_text(f'name = "tiny"\n[source]\nfactory = "tests.compressor.tiny:mlp"\n{tables}')
    return path


@dataclass(frozen=True)
class Broken:
    """A pass that does what `how` says instead of its work."""

    name: ClassVar[str] = "broken"
    takes: ClassVar[Kind] = Kind.TORCH
    gives: ClassVar[Kind] = Kind.TORCH
    needs_calibration: ClassVar[bool] = False
    how: str = ""

    def requires(self, artifact: Artifact, context: Context) -> None: ...

    def apply(self, artifact: Artifact, context: Context) -> Outcome:
        if self.how == "raises":
            raise ZeroDivisionError("no\nrange")
        changes: dict[str, dict[str, Any]] = {
            "other outputs": {"outputs": artifact.inputs},
            "other kind": {"kind": Kind.ONNX},
            "other answer": {"module": torch.nn.Linear(tiny.FEATURES, tiny.CLASSES + 1)},
        }
        return Outcome(artifact.became(**changes[self.how]))

    def ensures(self, before: Artifact, after: Artifact, context: Context) -> None: ...


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        (("quantize_dynamic",), "pass[0]: quantize_dynamic takes a model of kind onnx, but the source is torch"),
        (
            ("export_onnx", "prune_magnitude"),
            "pass[1]: prune_magnitude takes a model of kind torch, but export_onnx "
            "gives onnx; put it before export_onnx",
        ),
        (("prune_magnitude",), "pass: the last model is of kind torch; add export_onnx"),
        ((), "pass: the last model is of kind torch; add export_onnx"),
        (
            ("export_onnx", "quantize_static"),
            "pass[1]: quantize_static needs samples to calibrate on; data.calibration is missing",
        ),
    ],
)
def test_a_chain_that_does_not_fit_is_told_before_anything_is_loaded(
    tmp_path: Path, passes: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        pipeline.check(recipe.load(chain(tmp_path, *passes)))
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.toml'}: {expected}")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raises", "broken: ZeroDivisionError: no range"),
        ("other outputs", "broken: changed the declared inputs or outputs"),
        ("other kind", "broken: gave onnx, declares torch"),
        ("other answer", "broken: output output is float32 "),
    ],
)
def test_a_pass_that_breaks_its_contract_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, expected: str
) -> None:
    monkeypatch.setitem(REGISTRY, "broken", Broken)
    path = chain(tmp_path, "broken", "export_onnx")
    path.write_text(path.read_text().replace('name = "broken"', f'name = "broken"\nhow = "{how}"'))
    with pytest.raises(PassError) as caught:
        run(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: pass[0]: {expected}")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "work" / "tiny").iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made, str]:
    """One whole run, for the tests that go on from there: export, then static quantization."""
    folder = tmp_path_factory.mktemp("finished")
    made, told = run(folder, tiny.recipe(folder))
    return folder, made, told


@pytest.mark.slow
def test_a_finished_job_runs_nothing_again(finished: tuple[Path, Made, str]) -> None:
    folder, made, told = finished
    assert "export_onnx …" in told
    assert [step.name for step in made.result.trail] == ["export_onnx", "quantize_static"]
    assert [step.name for step in made.baseline.trail] == ["export_onnx"]
    again, second = run(folder, folder / "recipe.toml")
    assert "…" not in second.replace("read the calibration samples …", "")
    assert "export_onnx: done before" in second
    assert again == made


@pytest.mark.slow
def test_another_parameter_repeats_only_the_passes_from_there_on(finished: tuple[Path, Made, str]) -> None:
    folder, _, _ = finished
    _, told = run(folder, tiny.recipe(folder, parameters='calibrator = "percentile"'))
    assert "export_onnx: done before" in told
    assert "quantize_static …" in told
    tiny.recipe(folder)
    _, back = run(folder, folder / "recipe.toml")
    assert "quantize_static …" in back, "checkpoints of other parameters are not kept"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_made_again(finished: tuple[Path, Made, str]) -> None:
    folder, _, _ = finished
    made, _ = run(folder, tiny.recipe(folder))
    assert made.result.path is not None
    content = bytearray(made.result.path.read_bytes())
    content[len(content) // 2] ^= 1
    made.result.path.write_bytes(content)
    again, told = run(folder, folder / "recipe.toml")
    assert "export_onnx: done before" in told
    assert "quantize_static …" in told
    assert again.result.path == made.result.path
    interface.ensure(again.baseline, again.result, Kind.ONNX, "quantize_static")


@pytest.mark.slow
def test_a_torch_checkpoint_is_a_state_dict_that_goes_back_into_the_source(tmp_path: Path) -> None:
    path = chain(tmp_path, "prune_magnitude", "export_onnx")
    made, _ = run(tmp_path, path)
    (pruned,) = (tmp_path / "work" / "tiny").glob("prune_magnitude-*")
    assert {file.name for file in pruned.iterdir()} == {"checkpoint.json", "state.safetensors"}
    (exported,) = [
        p
        for p in (tmp_path / "work" / "tiny").glob("export_onnx-*")
        if made.result.path is not None and p == made.result.path.parent
    ]
    (exported / "checkpoint.json").unlink()
    again, told = run(tmp_path, path)
    assert "prune_magnitude: done before" in told
    assert "export_onnx …" in told
    x = {"x": np.ones((2, tiny.FEATURES), np.float32)}
    answers = [pipeline.interface.probe.session(one.result.path).run(None, x)[0] for one in (made, again)]
    assert np.array_equal(*answers)
    assert made.baseline.path != made.result.path


@pytest.mark.slow
def test_a_job_killed_in_a_pass_goes_on_after_the_last_finished_one(tmp_path: Path) -> None:
    # The calibration stream is read for its hash, to see whether it fits, and then by the pass.
    blocking = {"calibration": "tests.compressor.tiny:samples_that_block"}
    path = tiny.recipe(tmp_path, **blocking, arguments=", arguments = { at_call = 3 }")
    command = [sys.executable, "-m", "compressor", *tiny.arguments(tmp_path, path, "--no-publish")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    told = []
    with child.stdout:
        for line in child.stdout:
            told.append(line)
            if line == "blocked\n":
                break
        child.kill()
        child.wait()
    assert "quantize_static …\n" in told
    left = [found.name for found in (tmp_path / "work" / "tiny").iterdir() if found.name.startswith(".")]
    assert left, "the pass was at work"
    path = tiny.recipe(tmp_path, **blocking, arguments=", arguments = { at_call = -1 }")
    _, second = run(tmp_path, path)
    assert "export_onnx: done before" in second
    assert "quantize_static …" in second
    assert not list((tmp_path / "work" / "tiny").glob(".*")), "what the killed run left is swept"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_says_that_it_can_go_on(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "tiny"\n[source]\nfactory = "tests.compressor.tiny:blocked"\n[[pass]]\nname = "export_onnx"\n'
    )
    command = [sys.executable, "-m", "compressor", *tiny.arguments(tmp_path, path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            if line == "blocked\n":
                child.send_signal(number)
        assert child.wait() == 130
        assert child.stderr.read() == ("interrupted; run the same command again to go on: finished passes are kept\n")


def test_every_error_of_a_job_has_its_exit_status() -> None:
    statuses = {cls.__name__: cls.exit_status for cls in JobError.__subclasses__()}
    assert statuses == {"RecipeError": 2, "PassError": 1, "Refused": 3, "OverBudget": 4, "MeasureError": 1}
