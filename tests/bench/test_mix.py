"""The mix, the framing of its client, and what padding in arrival order wastes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.wire import service
from tests.bench import mix, texts
from tests.bench.mix_client import framed, unframed


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_messages_come_back_out_of_their_frames(messages: list[bytes]) -> None:
    assert unframed(framed(messages)) == messages


def test_a_message_carries_its_tokens_and_a_mask_of_ones() -> None:
    request = service.ModelInferRequest.FromString(mix.message("m", np.array([[101, 7592, 102]])))
    assert [(tensor.name, list(tensor.shape)) for tensor in request.inputs] == [
        ("input_ids", [1, 3]),
        ("attention_mask", [1, 3]),
    ]
    arrays = [np.frombuffer(raw, np.int64).tolist() for raw in request.raw_input_contents]
    assert arrays == [[101, 7592, 102], [1, 1, 1]]


@pytest.mark.parametrize(
    ("lengths", "rows", "waste"),
    [([5, 5, 5, 5], 2, 0.0), ([4, 8, 4, 8], 2, 0.25), ([1, 2, 3], 1, 0.0), ([2, 4], 8, 0.25)],
)
def test_arrival_order_wastes_what_neighbours_are_shorter_than_the_longest(
    lengths: list[int], rows: int, waste: float
) -> None:
    assert mix.arrival_waste(lengths, rows) == waste


@pytest.mark.parametrize(("kind", "count"), [("titles", 1_682), ("sentences", 23_703)])
def test_a_mix_is_always_the_same(kind: str, count: int) -> None:
    try:
        first, again = texts.shuffled(kind), texts.shuffled(kind)
    except texts.Missing as error:
        pytest.skip(str(error))
    assert first == again
    assert len(first) == count
    assert len({text.strip() == text for text in first}) == 1


def test_a_data_package_that_is_another_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "recbole.whl"
    monkeypatch.setattr(texts, "WHEEL", wheel)
    with pytest.raises(texts.Missing, match="is missing: run `make install`"):
        texts.titles()
    wheel.write_bytes(b"something else")
    with pytest.raises(texts.Missing, match="SHA-256 is"):
        texts.titles()
