"""The card: written, read back, compared with its files; nothing that is not one is taken for one."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from protos import card as cards
from protos.card import Card, CardError, Latency, Metric, Step
from tests.protos.strategies import cards as any_card

CARD = Card(
    model="m",
    version=1,
    created="2026-01-01T00:00:00Z",
    trail=(Step("quantize_dynamic", {"weights": "int8", "skip": ["head"]}, 1.5, {"MatMul quantized": 36}),),
    metrics=(Metric("embedding_cosine", 1.0, 0.99, True, "held out", 200),),
    output_error={"y": {"max_abs": 0.1, "cosine": 0.99}},
    baseline_bytes=100,
    bytes=25,
    latency=(Latency(1, {"x": (128,)}, 9.0, 10.0, 4.0, 5.0),),
    host={"cpu": "some", "vnni": True},
    files={},
    inputs_sha256={"recipe": "0" * 64},
    libraries={"onnxruntime": "1.31.1"},
    budget={"size_ratio_max": 0.27},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder with two files and the card of them."""
    version = tmp_path / "m" / "1"
    (version / "data").mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"model")
    (version / "data" / "weights.bin").write_bytes(bytes(3_000_000))
    cards.write(replace(CARD, files=cards.hashes(version)), version)
    return version


def check(folder: Path) -> None:
    found = cards.read(folder)
    assert found is not None
    cards.verify(found, folder)


@given(any_card)
def test_every_card_survives_its_file(card: Card) -> None:
    assert cards.loads(cards.dumps(card), "card.json") == card


@given(any_card)
def test_a_card_is_json_that_others_can_read(card: Card) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(cards.dumps(card), parse_constant=refuse)


def test_numbers_without_an_end_survive() -> None:
    card = replace(CARD, output_error={"y": {"a": math.inf, "b": -math.inf, "c": math.nan}})
    found = cards.loads(cards.dumps(card), "card.json").output_error["y"]
    assert (found["a"], found["b"], math.isnan(found["c"])) == (math.inf, -math.inf, True)


def test_files_as_published_pass(folder: Path) -> None:
    check(folder)


def test_no_card_is_no_error(tmp_path: Path) -> None:
    assert cards.read(tmp_path) is None


def test_what_json_has_no_form_for_is_told(tmp_path: Path) -> None:
    card = replace(CARD, trail=(Step("prune", {"mask": object()}, 1.0),))
    with pytest.raises(CardError, match="card of 'm': cannot be written as JSON: Object of type object"):
        cards.write(card, tmp_path)
    assert list(tmp_path.iterdir()) == []


def changed(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"mOdel")


def missing(folder: Path) -> None:
    (folder / "data" / "weights.bin").unlink()


def extra(folder: Path) -> None:
    (folder / "data" / "more.bin").write_bytes(b"")


def linked(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to("../elsewhere")


def linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def piped(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (changed, r"^m/1/model.onnx: SHA-256 is [0-9a-f]{64}, the card says [0-9a-f]{64}$"),
        (missing, r"^m/1/data/weights.bin: missing, the card lists it$"),
        (extra, r"^m/1/data/more.bin: not listed in the card$"),
        (linked, r"^m/1/model.onnx: cannot be read: "),
        (linked_folder, r"^m/1/more: not listed in the card$"),
        (piped, r"^m/1/model.onnx: cannot be read: is no regular file$"),
    ],
)
def test_a_file_that_is_not_the_cards_is_told(folder: Path, damage: Any, expected: str) -> None:
    damage(folder)
    with pytest.raises(CardError, match=expected):
        check(folder)


def test_a_card_of_another_version_is_told(folder: Path) -> None:
    other = folder.rename(folder.parent / "2")
    with pytest.raises(CardError, match=r"^m/2/card.json: is the card of version 1, expected 2$"):
        check(other)


def with_value(path: str, value: Any) -> str:
    """The card's JSON with one value changed; `…` takes the key away."""
    data = json.loads(cards.dumps(CARD))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = data
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON"),
        ("[1]", "schema is None, expected 'demiglace.card/1'"),
        ("[" * 100_000, "not JSON"),
        (with_value("schema", "demiglace.card/2"), "schema is 'demiglace.card/2', expected 'demiglace.card/1'"),
        (with_value("bytes", ...), "key 'bytes' is missing"),
        (with_value("sizes", 3), "unknown key 'sizes', allowed are model, version"),
        (with_value("version", "1"), 'version: "1", expected int'),
        (with_value("version", True), "version: true, expected int"),
        (with_value("version", 1.0), "version: 1.0, expected int"),
        (with_value("bytes", 10**30 * 1.5), "expected int"),
        (with_value("metrics", {}), "metrics: {}, expected a list"),
        (with_value("metrics.0.baseline", "high"), 'metrics[0]: baseline: "high", expected float'),
        (with_value("metrics.0.samples", ...), "metrics[0]: key 'samples' is missing"),
        (with_value("trail.0", "prune"), 'trail[0]: "prune", expected an object'),
        (with_value("output_error.y.cosine", None), "output_error.y.cosine: null, expected float"),
        (with_value("latency.0.shapes.x", 3), "latency[0]: shapes.x: 3, expected a list"),
        (with_value("files", {"../../etc/passwd": "0" * 64}), 'name "../../etc/passwd" has a part that begins with'),
        (with_value("files", {"/etc/passwd": "0" * 64}), 'name "/etc/passwd" has a part that is empty'),
        (with_value("files", {"model.onnx": "0" * 63}), "is no SHA-256"),
    ],
)
def test_what_is_no_card_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "card.json").write_text(text)
    with pytest.raises(CardError) as caught:
        cards.read(version)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("m/1/card.json: ")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_card_that_is_huge_not_utf8_or_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    with path.open("wb") as file:
        file.truncate(cards.MAX_BYTES + 1)
    with pytest.raises(CardError, match="bytes, at most"):
        cards.read(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(CardError, match="byte 0 is not valid UTF-8"):
        cards.read(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CardError, match="is no regular file"):
        cards.read(tmp_path)


def test_the_fields_of_the_schema_are_these() -> None:
    """A field that is added or renamed needs a new schema number: old readers refuse what they do not know."""
    assert cards.SCHEMA == "demiglace.card/1"
    assert list(asdict(CARD)) == [
        "model",
        "version",
        "created",
        "trail",
        "metrics",
        "output_error",
        "baseline_bytes",
        "bytes",
        "latency",
        "host",
        "files",
        "inputs_sha256",
        "libraries",
        "budget",
        "schema",
    ]
