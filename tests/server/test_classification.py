"""Top-k strings as Triton spells them (server: src/classification.cc, docs/protocol/extension_classification.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.datatypes import BY_NAME
from protos.model_config import ConfigError, ModelConfig, TensorSpec
from server.classification import classify, read_labels
from server.errors import InvalidRequest
from server.request import Tensor


def top(values: Any, k: int, labels: tuple[str, ...] = (), datatype: str = "FP32", batched: bool = True) -> Any:
    array = np.asarray(values, BY_NAME[datatype].numpy)
    result = classify(Tensor("y", BY_NAME[datatype], array), k, labels, batched)
    assert result.datatype.name == "BYTES"
    return result.array


def test_values_descend_and_carry_index_and_label() -> None:
    got = top([[0.1, 0.7, 0.2]], 2, ("cat", "dog"))
    assert got.tolist() == [[b"0.700000:1:dog", b"0.200000:2"]]


def test_k_is_bounded_by_the_number_of_classes() -> None:
    assert top([[1.0, 2.0]] * 3, 1000).shape == (3, 2)
    assert top(np.zeros((2, 3, 2)), 1000).shape == (2, 6)


def test_indices_run_over_all_elements_of_a_row() -> None:
    assert top([[[1, 2], [4, 3]]], 2, datatype="INT32").tolist() == [[b"4:2", b"3:3"]]


def test_equal_values_keep_the_order_of_their_indices() -> None:
    assert top([[5, 5, 5]], 3, datatype="INT64").tolist() == [[b"5:0", b"5:1", b"5:2"]]


def test_without_batching_there_is_no_batch_dimension() -> None:
    assert top([3.0, 4.0], 1, batched=False).tolist() == [b"4.000000:1"]


def test_unsigned_and_extreme_integers_are_exact() -> None:
    assert top([[2**64 - 1, 0]], 1, datatype="UINT64").tolist() == [[b"18446744073709551615:0"]]


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_types_that_triton_does_not_classify_are_refused(datatype: str) -> None:
    with pytest.raises(InvalidRequest, match=f"due to unsupported type '{datatype}'"):
        top([[1]], 1, datatype=datatype)


def labelled(filename: str) -> ModelConfig:
    return ModelConfig("m", outputs=(TensorSpec("y", BY_NAME["FP32"], (2,), label_filename=filename),))


def test_labels_are_the_lines_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog, hot\n")
    assert read_labels(tmp_path, labelled("labels.txt")) == {"y": ("cat", "dog, hot")}


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "a/../../secret.txt", "link.txt", "missing.txt"])
def test_a_label_file_outside_the_entry_is_refused(tmp_path: Path, name: str) -> None:
    entry = tmp_path / "entry"
    entry.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (entry / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ConfigError, match="model 'm', output 'y': label_filename"):
        read_labels(entry, labelled(name))
