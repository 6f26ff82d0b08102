"""`config.pbtxt` in and out; the files under tests/cases/config are the golden ones and the hostile ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as triton

from protos import config_text
from protos.datatypes import BY_NAME
from protos.model_config import ConfigError, DynamicBatching, InstanceGroup, ModelConfig, TensorSpec
from tests.protos.strategies import configs

CASES = Path(__file__).parents[1] / "cases" / "config"
GOOD = sorted((CASES / "good").glob("*.pbtxt"))
HOSTILE = sorted((CASES / "hostile").glob("*.pbtxt"))


def stem(path: Path) -> str:
    return path.stem


def read(path: Path) -> ModelConfig:
    return config_text.parse(path.read_text(), path.name)


@given(configs())
def test_every_configuration_survives_text(config: ModelConfig) -> None:
    assert config_text.parse(config_text.dump(config), "file") == config


@given(configs())
def test_every_configuration_survives_json(config: ModelConfig) -> None:
    assert config_text.from_json(config_text.to_json(config), "file") == config


@given(configs())
def test_a_parsed_configuration_prints_as_it_was_printed(config: ModelConfig) -> None:
    text = config_text.dump(config)
    assert config_text.dump(config_text.parse(text, "file")) == text


@given(configs())
def test_tritons_own_schema_reads_what_we_print(config: ModelConfig) -> None:
    theirs = text_format.Parse(config_text.dump(config), triton.ModelConfig())
    assert theirs.SerializeToString(deterministic=True) == config_text.to_message(config).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("path", GOOD, ids=stem)
def test_a_good_file_loses_nothing(path: Path) -> None:
    config = read(path)
    written = text_format.Parse(path.read_text(), triton.ModelConfig())
    again = text_format.Parse(config_text.dump(config), triton.ModelConfig())
    assert again == written
    assert config_text.parse(config_text.dump(config), path.name) == config


@pytest.mark.parametrize("path", HOSTILE, ids=stem)
def test_a_bad_file_is_refused_in_one_line_that_says_what_is_allowed(path: Path) -> None:
    expected = path.read_text().splitlines()[0].removeprefix("# expect: ")
    with pytest.raises(ConfigError) as caught:
        read(path)
    text = str(caught.value)
    assert expected in text
    assert text.startswith(path.name)
    assert "\n" not in text
    assert len(text) < 800


def test_a_sentence_model_reads_as_written() -> None:
    config = read(CASES / "good" / "sentence_embedding.pbtxt")
    assert config == ModelConfig(
        name="minilm",
        platform="onnxruntime_onnx",
        max_batch_size=32,
        inputs=tuple(TensorSpec(n, BY_NAME["INT64"], (-1,)) for n in ("input_ids", "attention_mask")),
        outputs=(TensorSpec("sentence_embedding", BY_NAME["FP32"], (384,)),),
        instance_groups=(InstanceGroup("KIND_CPU", 2),),
        dynamic_batching=DynamicBatching(),
        parameters={"intra_op_thread_count": "1"},
    )


def test_fields_that_change_answers_are_named_unsupported() -> None:
    sequence = read(CASES / "good" / "unsupported_sequence.pbtxt")
    assert sequence.unsupported == (
        "sequence_batching",
        "model_transaction_policy.decoupled",
        "batch_input",
        "input.allow_ragged_batch",
    )
    assert read(CASES / "good" / "unsupported_ensemble.pbtxt").unsupported == ("ensemble_scheduling",)


def test_fields_that_do_not_are_named_ignored() -> None:
    config = read(CASES / "good" / "everything_ignored.pbtxt")
    assert config.unsupported == ()
    assert config.ignored == (
        "runtime",
        "model_warmup",
        "response_cache.enable",
        "model_metrics",
        "instance_group.rate_limiter",
        "instance_group.host_policy",
        "optimization.priority",
        "optimization.cuda",
        "optimization.execution_accelerators",
        "optimization.eager_batching",
    )


def test_changing_one_field_leaves_what_is_not_modelled() -> None:
    config = read(CASES / "good" / "everything_ignored.pbtxt")
    message = config_text.to_message(replace(config, max_batch_size=7))
    assert message.max_batch_size == 7
    message.max_batch_size = config.max_batch_size
    assert message == config_text.to_message(config)
    assert message.instance_group[0].host_policy == "numa0"


def test_no_more_is_written_than_was_set() -> None:
    assert config_text.dump(ModelConfig("m", max_batch_size=4)) == 'name: "m"\nmax_batch_size: 4\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "is no JSON object"),
        ("", "is no JSON object"),
        ("{", "Failed to load JSON"),
        ('{"nme": "m"}', "did you mean 'name'?"),
        ('{"input": [{"name": "x", "data_type": "TYPE_FP33"}]}', "did you mean 'TYPE_FP32'?"),
        ('{"max_batch_size": "many"}', "max_batch_size"),
        ('{"max_batch_size": -1}', "max_batch_size: -1 is not in 0"),
        ('{"name": "\\ud800"}', "surrogate"),
        ('{"input":' * 50_000, "Failed to load JSON"),
    ],
)
def test_bad_json_is_refused_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"^load parameter: ") as caught:
        config_text.from_json(text, "load parameter")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 2_000_000,
        'name: "' + "\\" * 500_000,
        "input {" * 10_000,
        'name: "' + "a" * 100_000 + '" max_batch_size: -1',
        "max_batch_size: " + "1" * 100_000,
        'name: "\ud800"',
        "\x00",
        'parameters { key: "\x1b[31m" value: 3 }',
    ],
    ids=["huge", "backslashes", "nested", "long name", "long number", "surrogate", "nul", "escape"],
)
def test_hostile_text_costs_little_and_is_told_in_one_short_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_text.parse(text, "m/config.pbtxt")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def outcome(text: str) -> ModelConfig | str:
    try:
        return config_text.parse(text, "file")
    except ConfigError as error:
        return str(error)


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: b.decode("latin-1"))))
def test_any_text_parses_or_is_refused(text: str) -> None:
    found = outcome(text)
    assert isinstance(found, ModelConfig) or found.isprintable()


@given(path=st.sampled_from(GOOD), data=st.data())
def test_a_mutated_file_parses_or_is_refused(path: Path, data: st.DataObject) -> None:
    text = path.read_text()
    at = data.draw(st.integers(0, len(text)))
    upto = data.draw(st.integers(at, min(len(text), at + 20)))
    found = outcome(text[:at] + data.draw(st.text(max_size=8)) + text[upto:])
    assert outcome(config_text.dump(found)) == found if isinstance(found, ModelConfig) else found.isprintable()
