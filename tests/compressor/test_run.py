"""A job to its end: budget, report, publish, exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor import measure, onnx_file
from compressor.__main__ import main
from compressor.interface import of_onnx
from compressor.passes import probe
from protos import card, repository
from tests.compressor import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the passes run once."""
    return tmp_path_factory.mktemp("jobs")


def job(folder: Path, *flags: str, **changes: str) -> int:
    return main(tiny.arguments(folder, tiny.recipe(folder, **changes), *flags))


PUBLISH = """baseline = "tiny-float"
max_batch_size = 16
instance_group = { count = 2, kind = "KIND_CPU" }
dynamic_batching = { preferred_batch_size = [4, 8], max_queue_delay_microseconds = 100 }
"""


@pytest.mark.slow
def test_a_published_entry_reads_back_as_the_recipe_says_and_its_card_proves_it(folder: Path) -> None:
    assert job(folder, budget="size_ratio_max = 0.9\nagreement_min = 0.5", extra=PUBLISH) == 0
    root = folder / "repository"
    assert repository.names(root) == ("tiny", "tiny-float")
    entry = repository.read(root, "tiny")
    config = entry.config
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "onnxruntime_onnx", 16)
    assert [(s.name, s.datatype.name, s.dims) for s in (*config.inputs, *config.outputs)] == [
        ("x", "FP32", (16,)),
        ("logits", "FP32", (4,)),
    ]
    assert [(group.kind, group.count) for group in config.instance_groups] == [("KIND_CPU", 2)]
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.preferred_batch_size == (4, 8)
    version = entry.version_path(entry.versions[-1])
    proof = card.read(version)
    assert proof is not None
    card.verify(proof, version)
    assert (proof.model, proof.version) == ("tiny", entry.versions[-1])
    assert [step.name for step in proof.trail] == ["export_onnx", "quantize_static"]
    assert {metric.name for metric in proof.metrics} == {"agreement"}
    assert proof.metrics[0].samples == 24
    assert set(proof.output_error) == {"logits"}
    assert set(proof.output_error["logits"]) == {"max_abs", "mean_abs", "cosine", "batch_influence"}
    assert proof.bytes == onnx_file.size(version / "model.onnx") < proof.baseline_bytes
    assert set(proof.inputs_sha256) == {"source", "calibration", "evaluation", "recipe"}
    assert all(len(digest) == 64 for digest in proof.inputs_sha256.values())
    assert proof.budget == {"size_ratio_max": 0.9, "agreement_min": 0.5}
    assert "onnxruntime" in proof.libraries
    baseline = repository.read(root, "tiny-float")
    original = card.read(baseline.version_path(1))
    assert original is not None
    assert original.bytes == original.baseline_bytes == proof.baseline_bytes
    assert original.metrics[0].result == original.metrics[0].baseline == 1.0


@pytest.mark.slow
def test_the_same_job_again_publishes_no_new_version(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"name": "again", "extra": PUBLISH.replace("tiny-float", "again-float")}
    assert job(folder, **changes) == 0
    assert "published: again version 1" in capsys.readouterr().out
    assert job(folder, **changes) == 0
    assert "already published: again version 1" in capsys.readouterr().out
    assert repository.read(folder / "repository", "again").versions == (1,)


@pytest.mark.slow
def test_over_budget_publishes_nothing_and_says_which_limit_by_how_much(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(folder, name="fat", budget="size_ratio_max = 0.01\nagreement_min = 0.1") == 4
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "over budget, nothing is published: budget.size_ratio_max: 0." in told.err
    assert "allowed is at most 0.01: broken by 0." in told.err
    assert "agreement_min" not in told.err
    assert "fat" not in (repository.names(folder / "repository") if (folder / "repository").exists() else ())
    report = json.loads((folder / "reports" / "fat.json").read_text())
    assert report["outcome"] == "over budget: nothing is published"
    assert [(v["key"], v["kept"]) for v in report["verdicts"]] == [("size_ratio_max", False), ("agreement_min", True)]
    assert "broken by" in (folder / "reports" / "fat.md").read_text()


@pytest.mark.slow
def test_limits_that_were_not_measured_keep_a_result_from_being_published(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny.recipe(folder, name="unmeasured", budget="speedup_min = 1.0").read_text()
    path = folder / "unmeasured.toml"
    path.write_text(text.replace('metrics = ["agreement"]', "latency = { batches = [1] }"))
    assert main(tiny.arguments(folder, path, "--no-latency")) == 0
    assert "not measured are the limits speedup_min" in capsys.readouterr().out
    assert not (folder / "repository" / "unmeasured").exists()


@pytest.mark.slow
def test_a_users_own_metric_is_called_by_its_name(folder: Path) -> None:
    text = tiny.recipe(folder, name="own", budget="distance_max = 10").read_text()
    path = folder / "own.toml"
    path.write_text(text.replace('["agreement"]', '["tests.compressor.tiny:distance", "accuracy"]'))
    assert main(tiny.arguments(folder, path, "--no-publish")) == 0
    report = json.loads((folder / "reports" / "own.json").read_text())
    (distance, accuracy) = report["measured"]["metrics"]
    assert (distance["name"], distance["baseline"], distance["higher_is_better"]) == ("distance", 0.0, False)
    assert distance["result"] > 0
    assert 0 <= accuracy["result"] <= 1


@pytest.mark.slow
def test_held_out_samples_that_are_calibrated_on_stop_the_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        tiny.recipe(folder, name="leak")
        .read_text()
        .replace('split = "held_out", count = 24', 'split = "calibration", count = 16')
    )
    path = folder / "leak.toml"
    path.write_text(text)
    assert main(tiny.arguments(folder, path)) == 2
    assert "16 of 16 samples are in data.calibration too" in capsys.readouterr().err


def test_data_that_does_not_fit_ends_with_status_2_before_any_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((16, 3), np.float32))
    assert job(tmp_path, calibration="wrong.npz") == 2
    told = capsys.readouterr()
    assert "data.calibration: sample 0 has input 'x' of shape [3], expected [16]" in told.err
    assert "export_onnx" not in told.out
    assert not (tmp_path / "repository").exists()


def test_check_only_looks_at_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(tmp_path, "--check") == 0
    assert "2 passes: export_onnx, quantize_static" in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


def onnx_job(folder: Path, inputs: str) -> int:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g ({inputs}) => (float[3, 4] y, float[3] sums) {{
        y = Mul (x, scale)
        axes = Constant <value_ints = [1]> ()
        sums = ReduceSum <keepdims = 0> (y, axes)
    }}"""
    onnx.save(onnx.parser.parse_model(text), folder / "fixed.onnx")
    path = folder / "recipe.toml"
    path.write_text(
        'name = "fixed"\n[source]\nonnx = "fixed.onnx"\n[data]\nevaluation = { samples = "random", count = 5 }\n'
        f'[publish]\nrepository = "{folder / "repository"}"\n'
    )
    return main(tiny.arguments(folder, path))


def test_an_onnx_file_without_a_batch_dimension_is_published_as_it_is(tmp_path: Path) -> None:
    assert onnx_job(tmp_path, "float[3, 4] x, float[1] scale") == 0
    entry = repository.read(tmp_path / "repository", "fixed")
    assert entry.config.max_batch_size == 0
    assert [spec.dims for spec in (*entry.config.inputs, *entry.config.outputs)] == [(3, 4), (1,), (3, 4), (3,)]
    assert of_onnx(repository.model_file(entry, 1)) == of_onnx(tmp_path / "fixed.onnx")


def test_a_scalar_that_no_entry_can_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert onnx_job(tmp_path, "float[3, 4] x, float scale") == 2
    assert "publish: scale is a scalar, which cannot be served by a model without" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def tiny_bert(folder: Path) -> Path:
    """A BERT of two small layers with random weights, as a Hugging Face folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    return folder / "bert"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bert_goes_from_folder_to_entry_with_its_latency_as_served(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
name = "bert-int8"
insist = true                       # so small a model need not be faster
[source]
huggingface = "bert"
wrapper = "sentence_embedding"
[data]
evaluation = {{ samples = "random", count = 12, sizes = {{ sequence = 16 }}, high = {{ input_ids = 100 }} }}
[[pass]]
name = "export_onnx"
[[pass]]
name = "quantize_dynamic"
[evaluate]
metrics = ["embedding_cosine"]
latency = {{ batches = [1, 4], requests = 20, rounds = 1 }}
throughput = {{ concurrency = 4, requests = 40, rounds = 1 }}
[budget]
embedding_cosine_min = 0.9
size_ratio_max = 0.9
[publish]
repository = "{tmp_path / "repository"}"
baseline = "bert"
max_batch_size = 8
dynamic_batching = {{ }}
""")
    assert main(tiny.arguments(tmp_path, path)) == 0
    entry = repository.read(tmp_path / "repository", "bert-int8")
    assert [(s.name, s.dims) for s in entry.config.inputs] == [("input_ids", (-1,)), ("attention_mask", (-1,))]
    assert [(s.name, s.dims) for s in entry.config.outputs] == [("sentence_embedding", (32,))]
    proof = card.read(entry.version_path(1))
    assert proof is not None
    assert [row.batch for row in proof.latency] == [1, 4]
    assert all(0 < row.p50 <= row.p99 and 0 < row.baseline_p50 <= row.baseline_p99 for row in proof.latency)
    live = probe.session(repository.model_file(entry, 1))
    ids = np.ones((2, 9), np.int64)
    (vectors,) = live.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": ids})
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    report = json.loads((tmp_path / "reports" / "bert-int8.json").read_text())
    assert report["measured"]["throughput"]["result"] > 0


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(measure.MeasureError) as caught, measure._server(tmp_path / "absent"):
        pass
    assert "the server started to measure did not become ready: " in str(caught.value)
    assert "\n" not in str(caught.value)
