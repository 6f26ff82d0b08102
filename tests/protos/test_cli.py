"""The `demiglace` command: finds programs without importing them, and shows what is in a repository."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from protos import card, cli, repository
from protos.datatypes import BY_NAME
from protos.model_config import ModelConfig, TensorSpec
from tests.protos.test_card import CARD


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a compressed entry, a plain one and a broken one."""
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    spec = TensorSpec("x", BY_NAME["FP32"], (3,))
    config = ModelConfig("small", 8, (spec,), (replace(spec, name="y"),), platform="onnxruntime_onnx")
    root = tmp_path / "repository"
    proof = replace(CARD, trail=tuple(replace(step, effect={"kept": "[bold]36[/bold]"}) for step in CARD.trail))
    repository.write(root, config, {"model.onnx": model}, proof)
    repository.write(root, replace(config, name="plain"), {"model.onnx": model})
    repository.write(root, replace(config, name="broken"), {"model.onnx": model})
    (root / "broken" / "config.pbtxt").write_text("nonsense")
    return root


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in ("compress", "serve", "load", "inspect"):
        assert f"\n  {verb} " in shown


def test_no_verb_shows_the_help_and_fails() -> None:
    assert cli.main([]) == 2


def test_an_unknown_verb_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sreve"]) == 2
    assert capsys.readouterr().err == "demiglace: 'sreve' is no verb; there are compress, serve, load, inspect\n"


@pytest.mark.parametrize("missing", ["no_such_package", "no_such_package.sub"])
def test_a_missing_package_is_told_with_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(cli.PROGRAMS, "serve", cli.Program("server", "serve", missing, "cpu"))
    assert cli.main(["serve"]) == 2
    expected = f"demiglace: serve: package '{missing}' is missing: pip install 'demiglace[cpu]'\n"
    assert capsys.readouterr().err == expected


def test_a_program_runs_as_main_with_the_rest_of_the_arguments_and_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_program").mkdir()
    (tmp_path / "a_program" / "__main__.py").write_text("import sys; print(__name__, sys.argv); sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setitem(cli.PROGRAMS, "tool", cli.Program("a_program", "runs", "json", "none"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tool", "--flag", "inspect"])
    assert stopped.value.code == 3
    assert capsys.readouterr().out == "__main__ ['demiglace tool', '--flag', 'inspect']\n"


def test_the_command_imports_none_of_the_programs() -> None:
    program = (
        "import sys; from protos import cli; cli.main(['help']);"
        "print([m for m in ('server', 'compressor', 'torch', 'onnxruntime', 'grpc') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.endswith("[]\n")


def test_inspect_lists_entries_broken_ones_beside_good_ones(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(root)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "no card" in lines["plain"]
    assert "quantize_dynamic" in lines["small"]
    assert "embedding_cosine 0.9900" in lines["small"]
    assert "config.pbtxt:1" in lines["broken"]


def test_inspect_shows_one_entry_in_full_and_markup_as_it_stands(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(root), "small"]) == 0
    shown = capsys.readouterr().out
    found = card.read(root / "small" / "1")
    assert found is not None
    for part in ("max_batch_size: 8", "x: FP32[3] -> y: FP32[3]", found.files["model.onnx"], "[bold]36[/bold]"):
        assert part in shown


def test_inspect_json_is_for_programs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(root), "--json"]) == 0
    broken, plain, small = json.loads(capsys.readouterr().out)
    assert broken["name"] == "broken"
    assert "nonsense" in broken["problem"]
    assert plain["cards"] == {}
    assert small["versions"] == [1]
    assert small["config"]["max_batch_size"] == 8
    assert small["cards"]["1"]["bytes"] == CARD.bytes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none"], "no entry 'none' in the repository"),
        (["../m"], "begins with a dot"),
        (["broken"], "no field 'nonsense'"),
    ],
)
def test_inspect_tells_what_it_cannot_read_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert cli.main(["inspect", str(root), *arguments]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.count("\n") == 1


def test_inspect_of_no_repository_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "none")]) == 2
    assert "is no model repository" in capsys.readouterr().err
