"""What is sent: generated samples, samples from files, the message on the wire."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput, model_config_pb2, service_pb2

from protos.datatypes import DATATYPES
from tests.load import inputs, samples
from tests.load.client import Address, encode, model_of
from tests.load.errors import LoadError
from tests.load.inputs import Filling, Model, ModelInput

BERT = Model(
    "bert",
    "onnxruntime_onnx",
    (ModelInput("input_ids", "INT64", (-1,)), ModelInput("attention_mask", "INT64", (-1,))),
    8,
)
SHAPES = {"input_ids": (16,), "attention_mask": (16,)}


def one(datatype: str, dims: tuple[int, ...] = (3, 4), **more: Any) -> Model:
    return Model("m", "p", (ModelInput("x", datatype, dims, **more),), 8)


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda datatype: datatype.name)
@pytest.mark.parametrize("zero", [False, True])
def test_every_datatype_can_be_generated_and_sent(datatype: Any, zero: bool) -> None:
    model = one(datatype.name)
    rows = inputs.generate(model, Filling(zero=zero), 2)
    arrays = inputs.batches(rows, 2, batched=True)[0]
    assert arrays["x"].shape == (2, 3, 4)
    assert arrays["x"].dtype == datatype.numpy
    wire = service_pb2.ModelInferRequest.FromString(encode(Address("a", "m", "", "u"), arrays, {"x": datatype.name}))
    expected = InferInput("x", [2, 3, 4], datatype.name)
    expected.set_data_from_numpy(arrays["x"])
    assert wire.raw_input_contents[0] == expected._get_content()
    assert wire.inputs[0] == expected._get_tensor()


def test_what_a_transformer_expects_is_the_default() -> None:
    rows = inputs.generate(BERT, Filling(SHAPES), 1)
    assert all((row["attention_mask"] == 1).all() for row in rows)
    ids = np.stack([row["input_ids"] for row in rows])
    assert ids.min() >= 0
    assert ids.max() <= 99
    assert len(np.unique(ids)) > 50


def test_a_range_is_kept_with_both_ends() -> None:
    rows = inputs.generate(one("INT8", (500,)), Filling(ranges={"x": (-3, 3)}), 1)
    assert set(rows[0]["x"].tolist()) == set(range(-3, 4))
    floats = inputs.generate(one("FP32", (500,)), Filling(ranges={"x": (-2.0, -1.0)}), 1)[0]["x"]
    assert -2 <= floats.min() < floats.max() <= -1
    edge = inputs.generate(one("UINT64", (50,)), Filling(ranges={"x": (2**64 - 2, 2**64 - 1)}), 1)[0]["x"]
    assert edge.min() >= 2**64 - 2


def test_the_same_seed_gives_the_same_samples() -> None:
    same = [inputs.generate(BERT, Filling(SHAPES, seed=seed), 1)[0]["input_ids"].tolist() for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize(
    ("model", "filling", "batch", "text"),
    [
        (BERT, Filling(), 1, r"input 'input_ids' of model 'bert'.*--shape input_ids:N"),
        (BERT, Filling({"input_ids": (16, 2)}), 1, r"--shape input_ids:16,2 does not fit"),
        (
            BERT,
            Filling({"ids": (16,)}),
            1,
            r"--shape ids: model 'bert' has no such input, it has attention_mask, input_ids",
        ),
        (one("FP32"), Filling({"x": (3, 5)}), 1, r"dimensions \[3,4\]"),
        (one("FP32"), Filling(ranges={"y": (0, 1)}), 1, r"--input-range y"),
        (one("INT8"), Filling(ranges={"x": (0, 128)}), 1, r"INT8 holds whole numbers from -128 to 127"),
        (one("INT8"), Filling(ranges={"x": (0, 1.5)}), 1, r"whole numbers"),
        (one("BYTES"), Filling(ranges={"x": (0, 1)}), 1, r"--string-length"),
        (one("FP99"), Filling(), 1, r"unknown datatype 'FP99'"),
        (one("FP32", (-1,)), Filling({"x": (10**18,)}), 1, r"gRPC carries at most"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_name(model: Model, filling: Filling, batch: int, text: str) -> None:
    with pytest.raises(LoadError, match=text) as caught:
        inputs.generate(model, filling, batch)
    assert "\n" not in str(caught.value)


def test_a_batch_beyond_the_model_is_refused() -> None:
    with pytest.raises(LoadError, match="at most 8 rows"):
        inputs.check_batch(BERT, 9)
    with pytest.raises(LoadError, match="does not batch"):
        inputs.check_batch(Model("m", "p", (), 0), 2)


def test_optional_inputs_are_left_out_unless_given_a_shape() -> None:
    assert inputs.generate(one("FP32", optional=True), Filling(), 1)[0] == {}
    assert set(inputs.generate(one("FP32", optional=True), Filling({"x": (3, 4)}), 1)[0]) == {"x"}


def test_batches_take_all_samples_in_turn_and_wrap_round() -> None:
    rows = [{"x": np.array([n])} for n in range(5)]
    found = [batch["x"].ravel().tolist() for batch in inputs.batches(rows, 2, batched=True)]
    assert found == [[0, 1], [2, 3], [4, 0]]
    assert [batch["x"].shape for batch in inputs.batches(rows, 1, batched=False)] == [(1,)] * 5
    with pytest.raises(LoadError, match="samples of one batch differ"):
        inputs.batches([{"x": np.zeros(2)}, {"x": np.zeros(3)}], 2, batched=True)


def test_metadata_tells_the_batch_dimension_from_the_others() -> None:
    metadata = service_pb2.ModelMetadataResponse(name="m", platform="p")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
    config = model_config_pb2.ModelConfig(max_batch_size=4)
    config.input.add(name="x", optional=True)
    assert model_of(metadata, config).inputs == (ModelInput("x", "FP32", (3,), optional=True),)
    assert model_of(metadata, model_config_pb2.ModelConfig()).inputs == (ModelInput("x", "FP32", (-1, 3)),)
    assert model_of(metadata, None).inputs == (ModelInput("x", "FP32", (3,)),)
    metadata.inputs[0].shape[0] = 1
    assert model_of(metadata, None).max_batch_size == 0


def test_npz_rows_are_samples(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.savez(file, input_ids=ids, attention_mask=np.ones((2, 3), np.int64))
    rows = samples.read(file, BERT, {})
    assert [row["input_ids"].tolist() for row in rows] == [[0, 1, 2], [3, 4, 5]]
    assert rows[0]["input_ids"].dtype == np.int64


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_json_is_read_as_perf_analyzer_does(tmp_path: Path) -> None:
    raw = base64.b64encode(np.array([7, 8], "<i8").tobytes()).decode()
    data = [
        {"input_ids": [1, 2], "attention_mask": {"content": [1, 1], "shape": [2]}},
        [{"input_ids": {"b64": raw}, "attention_mask": [1, 0]}],
    ]
    rows = samples.read(write(tmp_path / "in.json", {"data": data}), BERT, {})
    assert [row["input_ids"].tolist() for row in rows] == [[1, 2], [7, 8]]
    flat = samples.read(write(tmp_path / "b.json", {"data": [{"x": list(range(12))}]}), one("FP32"), {})
    assert flat[0]["x"].shape == (3, 4)
    text = samples.read(write(tmp_path / "c.json", {"data": [{"x": ["a", "grüß"]}]}), one("BYTES", (2,)), {})
    assert text[0]["x"].tolist() == [b"a", "grüß".encode()]
    shaped = samples.read(
        write(tmp_path / "d.json", {"data": [{"x": [1, 2, 3, 4]}]}), one("FP32", (-1, -1)), {"x": (2, 2)}
    )
    assert shaped[0]["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "list under 'data'"),
        ({"data": 3}, "list under 'data'"),
        ({"data": []}, "holds no samples"),
        ({"data": [3]}, "sample 0: expected an object"),
        ({"data": [{"x": [0] * 12, "y": [1]}]}, "'y' is no input of model 'm', which has x"),
        ({"data": [{}]}, "input 'x' of model 'm' is missing"),
        ({"data": [{"x": [1, 2]}]}, "has 2 elements"),
        ({"data": [{"x": [[1, 2], [3]]}]}, "ragged"),
        ({"data": [{"x": {"content": [1] * 12, "shape": [12]}}]}, r"shape \[12\] per sample, expected \[3, 4\]"),
        ({"data": [{"x": {"content": [1] * 12, "shape": ["3", 4]}}]}, "'shape' must be a list of whole numbers"),
        ({"data": [{"x": {"b64": "!"}}]}, "not base64"),
        ({"data": [{"x": {"b64": "AAAA"}}]}, "no multiple of 4"),
        ({"data": [{"x": ["a"] * 12}]}, "holds <U1 values, its datatype is INT32"),
        ({"data": [{"x": [2**40] * 12}]}, "values that INT32 cannot"),
        ({"data": [{"x": [0.5] * 12}]}, "float64 values"),
    ],
)
def test_a_bad_sample_file_is_one_line_naming_it(tmp_path: Path, data: object, text: str) -> None:
    file = write(tmp_path / "in.json", data)
    with pytest.raises(LoadError, match=text) as caught:
        samples.read(file, one("INT32"), {})
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "evil.npz"
    np.savez(file, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(LoadError, match="plain arrays"):
        samples.read(file, one("BYTES"), {})
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(LoadError, match="plain arrays"):
        samples.read(tmp_path / "single.npz", one("BYTES"), {})
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(LoadError, match="plain arrays"):
        samples.read(tmp_path / "torn.npz", one("BYTES"), {})
    with pytest.raises(LoadError, match="No such file"):
        samples.read(tmp_path / "none.npz", one("BYTES"), {})
    np.savez(tmp_path / "odd.npz", input_ids=np.zeros((2, 3), np.int64), attention_mask=np.zeros((1, 3), np.int64))
    with pytest.raises(LoadError, match="differ in their number"):
        samples.read(tmp_path / "odd.npz", BERT, {})
