"""Completing and checking a configuration against a model: Triton's rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import config_text
from protos.autocomplete import complete
from protos.datatypes import BY_NAME, DATATYPES
from protos.model_config import ConfigError, DynamicBatching, ModelConfig, ModelIO, TensorInfo, TensorSpec

FP32, INT64 = BY_NAME["FP32"], BY_NAME["INT64"]


def io(inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> ModelIO:
    return ModelIO(
        tuple(TensorInfo(name, FP32, shape) for name, shape in inputs.items()),
        tuple(TensorInfo(name, FP32, shape) for name, shape in outputs.items()),
    )


BATCHED = io({"x": (-1, 3, -1)}, {"y": (-1, 7)})
FIXED = io({"x": (2, 3)}, {"y": (2,)})
EMPTY = ModelConfig("m", backend="onnxruntime")


def test_a_model_with_a_free_first_dimension_gets_batching() -> None:
    assert complete(EMPTY, BATCHED) == ModelConfig(
        "m",
        max_batch_size=4,
        inputs=(TensorSpec("x", FP32, (3, -1)),),
        outputs=(TensorSpec("y", FP32, (7,)),),
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        dynamic_batching=DynamicBatching(),
        default_model_filename="model.onnx",
    )


def test_a_max_batch_size_that_is_given_stays() -> None:
    assert complete(replace(EMPTY, max_batch_size=32), BATCHED).max_batch_size == 32


def test_a_batch_size_of_one_gets_no_batcher() -> None:
    assert complete(replace(EMPTY, max_batch_size=1), BATCHED).dynamic_batching is None


def test_the_default_batch_size_can_be_set_and_switched_off() -> None:
    assert complete(EMPTY, BATCHED, default_max_batch_size=16).max_batch_size == 16
    unbatched = complete(EMPTY, BATCHED, default_max_batch_size=0)
    assert (unbatched.max_batch_size, unbatched.dynamic_batching) == (0, None)
    assert unbatched.inputs[0].dims == (-1, 3, -1)


def test_a_batcher_that_is_given_stays() -> None:
    batching = DynamicBatching(max_queue_delay_microseconds=9)
    assert complete(replace(EMPTY, dynamic_batching=batching), BATCHED).dynamic_batching == batching


def test_a_sequence_batcher_is_a_scheduler_too() -> None:
    config = config_text.parse('name: "m" backend: "onnxruntime" sequence_batching { }', "file")
    assert complete(config, BATCHED).dynamic_batching is None


@pytest.mark.parametrize("shapes", [FIXED, io({"x": (-1, 3)}, {"y": ()}), io({"x": (-1, 3), "z": (3,)}, {"y": (-1,)})])
def test_one_tensor_without_a_free_first_dimension_rules_batching_out(shapes: ModelIO) -> None:
    config = complete(EMPTY, shapes)
    assert (config.max_batch_size, config.dynamic_batching) == (0, None)
    with pytest.raises(ConfigError, match="autofill failed for model 'm': model does not support batching while"):
        complete(replace(EMPTY, max_batch_size=2), shapes)


def test_a_tensor_of_only_the_batch_dimension_is_one_element_reshaped() -> None:
    config = complete(EMPTY, io({"x": (-1,)}, {"y": (-1, 2)}))
    assert config.inputs == (TensorSpec("x", FP32, (1,), reshape=()),)


def test_a_scalar_is_one_element_without_reshape() -> None:
    config = complete(EMPTY, io({"x": ()}, {"y": (2,)}))
    assert config.inputs == (TensorSpec("x", FP32, (1,)),)


def test_only_the_missing_side_is_filled_in() -> None:
    given = TensorSpec("y", FP32, (7,), label_filename="labels.txt")
    config = complete(replace(EMPTY, outputs=(given,)), BATCHED)
    assert config.outputs == (given,)
    assert config.inputs == (TensorSpec("x", FP32, (3, -1)),)


def test_a_configuration_with_both_sides_is_only_checked() -> None:
    full = replace(EMPTY, inputs=(TensorSpec("x", FP32, (-1, 3, -1)),), outputs=(TensorSpec("y", FP32, (-1, 7)),))
    config = complete(full, BATCHED)
    assert (config.max_batch_size, config.dynamic_batching) == (0, None)


def test_without_auto_completion_both_sides_are_needed() -> None:
    with pytest.raises(ConfigError, match="model 'm': input: is missing, and auto-completion is switched off"):
        complete(EMPTY, BATCHED, auto_complete=False)


def test_completion_is_told_by_the_platform_or_the_file_name() -> None:
    told = ({"platform": "onnxruntime_onnx"}, {"default_model_filename": "model.onnx"})
    for config in (ModelConfig("m", **fields) for fields in told):  # type: ignore[arg-type]
        assert complete(config, BATCHED).backend == "onnxruntime"


COMPLETE = complete(EMPTY, BATCHED)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"inputs": (TensorSpec("z", FP32, (3, -1)),)}, "configuration expects 1 inputs, model provides 1: input 'x'"),
        (
            {"inputs": (*COMPLETE.inputs, TensorSpec("z", FP32, (1,)))},
            "unexpected inference input 'z', allowed inputs are: x",
        ),
        ({"outputs": (TensorSpec("z", FP32, (7,)),)}, "unexpected inference output 'z', allowed outputs are: y"),
        (
            {"inputs": (TensorSpec("x", INT64, (3, -1)),)},
            "configuration expects datatype TYPE_INT64 for input 'x', model provides TYPE_FP32",
        ),
        ({"inputs": (TensorSpec("x", FP32, (4, -1)),)}, "specifies 3 dimensions (shape [-1, 4, -1])"),
        ({"inputs": (TensorSpec("x", FP32, (3,)),)}, "the model expects 3 dimensions (shape [-1, 3, -1])"),
        ({"outputs": (TensorSpec("y", FP32, (-1,)),)}, "the model expects 2 dimensions (shape [-1, 7])"),
        ({"inputs": (TensorSpec("x", FP32, (3, -1), optional=True),)}, "optional is not allowed with max_batch_size"),
        ({"max_batch_size": -1}, "max_batch_size: -1 is not in"),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_refused(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(replace(COMPLETE, **change), BATCHED)  # type: ignore[arg-type]
    assert expected in str(caught.value)
    assert "model 'm'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batching_needs_a_free_first_dimension_in_every_tensor() -> None:
    config = replace(COMPLETE, inputs=(TensorSpec("x", FP32, (3,)),), outputs=(TensorSpec("y", FP32, (2,)),))
    with pytest.raises(ConfigError, match="first dimension must be -1; but shape expected by the model is"):
        complete(config, FIXED)


def test_an_input_may_be_narrowed_an_output_may_not() -> None:
    shapes = io({"x": (-1, -1)}, {"y": (-1, -1)})
    config = replace(COMPLETE, inputs=(TensorSpec("x", FP32, (16,)),), outputs=(TensorSpec("y", FP32, (-1,)),))
    assert complete(config, shapes).inputs[0].dims == (16,)
    with pytest.raises(ConfigError, match="tensor 'y'"):
        complete(replace(config, outputs=(TensorSpec("y", FP32, (16,)),)), shapes)


def test_a_reshape_is_what_the_model_is_compared_with() -> None:
    spec = TensorSpec("x", FP32, (12,), reshape=(3, 4))
    assert complete(replace(COMPLETE, inputs=(spec,)), BATCHED).inputs == (spec,)


def test_some_outputs_may_be_left_out() -> None:
    shapes = io({"x": (-1, 3, -1)}, {"y": (-1, 7), "hidden": (-1, 9)})
    assert len(complete(COMPLETE, shapes).outputs) == 1


shape = st.lists(st.one_of(st.just(-1), st.integers(1, 9)), max_size=4).map(tuple)


@st.composite
def model_ios(draw: st.DrawFn) -> ModelIO:
    def side() -> tuple[TensorInfo, ...]:
        names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
        return tuple(TensorInfo(name, draw(st.sampled_from(DATATYPES)), draw(shape)) for name in names)

    return ModelIO(side(), side())


@given(model_ios(), st.integers(0, 8))
def test_completion_ends_and_its_result_is_whole_and_printable(shapes: ModelIO, default: int) -> None:
    config = complete(EMPTY, shapes, default)
    assert complete(config, shapes, default, auto_complete=False) == config
    assert config_text.parse(config_text.dump(config), "file") == config
    assert [spec.name for spec in config.inputs] == [info.name for info in shapes.inputs]
