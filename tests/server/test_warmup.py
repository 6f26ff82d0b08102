"""First runs before the first request: which there are, and that nobody sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from protos import repository
from protos.datatypes import BY_NAME
from protos.model_config import ConfigError, ModelConfig, TensorSpec
from server import warmup
from server.backends.base import Device
from server.backends.fake import FakeSession
from server.loading import EntryLoader
from server.model import Model
from server.settings import Settings
from server.statistics import Statistics
from tests.server.core import FP32, HandClock, Sheet, config, load_fake, request
from tests.server.harness import write_entry


@contextmanager
def warmed(
    folder: Path, behaviour: str = "steady = true", settings: ModelConfig | None = None, instances: int = 1,
    dims: str = "[-1, 4]", seconds: float = 100.0,
) -> Iterator[tuple[Model, FakeSession]]:  # fmt: skip
    session = load_fake(folder, behaviour, dims=dims)
    model = Model("m", 1, settings or config(), session, (Device(),) * instances, HandClock())
    model.warm_up(seconds)
    yield model, session
    model.close()


def test_each_size_is_run_twice_on_every_instance_down_from_the_largest(tmp_path: Path) -> None:
    with warmed(tmp_path, settings=config(6), instances=2) as (_, session):
        assert [(ran.instance, ran.rows) for ran in session.ran] == [
            (instance, rows) for instance in (0, 1) for rows in (1, 1, 6, 6, 4, 4, 2, 2)
        ]


def test_nothing_of_it_is_counted(tmp_path: Path) -> None:
    with warmed(tmp_path) as (model, session):
        assert session.ran
        assert model.statistics() == Statistics().snapshot()


def test_it_tells_the_pace_of_every_batch_size(tmp_path: Path) -> None:
    with warmed(tmp_path) as (model, _):
        assert all(model._runner.pace.expected(None, rows) < float("inf") for rows in range(1, 9))


def test_variable_dimensions_get_one_length(tmp_path: Path) -> None:
    with warmed(tmp_path, settings=config(2, dims=(-1,)), dims="[-1, -1]") as (_, session):
        assert {ran.shapes["x"] for ran in session.ran} == {(1, warmup.VARIABLE), (2, warmup.VARIABLE)}


def test_a_declared_maximum_is_not_exceeded(tmp_path: Path) -> None:
    declared = {"demiglace.padding": "length<=16: x[0]=0 -> y[0]"}
    settings = replace(config(2, dims=(-1,)), parameters=declared)
    with warmed(tmp_path, settings=settings, dims="[-1, -1]") as (_, session):
        assert {ran.shapes["x"] for ran in session.ran} == {(1, 16), (2, 16)}


def test_a_model_that_does_not_batch_is_run_as_it_is(tmp_path: Path) -> None:
    with warmed(tmp_path, settings=config(0, dims=(2, 4)), dims="[2, 4]") as (_, session):
        assert [ran.shapes["x"] for ran in session.ran] == [(2, 4)] * 2


def test_text_inputs_get_empty_texts(tmp_path: Path) -> None:
    text = TensorSpec("x", BY_NAME["BYTES"], (4,))
    settings = replace(config(2), inputs=(text,), outputs=(replace(text, name="y"),))
    with warmed(tmp_path, settings=settings) as (_, session):
        assert session.ran[0].first == (b"",)


@pytest.mark.parametrize("behaviour", ["fail_on = 0.0", "crash_on = 0.0", "max_rows = 0"])
def test_a_model_that_refuses_zeros_is_served_all_the_same(tmp_path: Path, behaviour: str) -> None:
    with warmed(tmp_path, "steady = true\n" + behaviour) as (model, session):
        assert len(session.ran) == 1
        sheet = Sheet()
        model.submit(request(1.0), sheet)
        sheet.wait(1)


def test_without_time_only_the_first_row_is_run(tmp_path: Path) -> None:
    with warmed(tmp_path, seconds=1e-9) as (_, session):
        assert len(session.ran) <= 1


def test_what_takes_too_much_memory_is_left_out(tmp_path: Path) -> None:
    side = 1 << 11
    with warmed(tmp_path, settings=config(8, dims=(side, side)), dims=f"[-1, {side}, {side}]") as (_, session):
        assert {ran.rows for ran in session.ran} == {1, 2, 4}
    vast = config(8, dims=(1 << 20, 1 << 20))
    with warmed(tmp_path, settings=vast, dims="[-1, 1048576, 1048576]") as (_, session):
        assert not session.ran


def test_shape_tensors_cannot_be_made_up(tmp_path: Path) -> None:
    shape = replace(config(2), inputs=(TensorSpec("x", FP32, (4,), is_shape_tensor=True),))
    with warmed(tmp_path, settings=shape) as (_, session):
        assert not session.ran


@pytest.mark.parametrize(("option", "steady", "runs"), [({}, True, 8), ({"warmup": "0"}, True, 0), ({}, False, 0)])
def test_loading_warms_what_is_steady_for_as_long_as_the_option_says(
    tmp_path: Path, option: dict[str, str], steady: bool, runs: int
) -> None:
    write_entry(tmp_path, config="max_batch_size: 8\n", behaviour={"steady": True} if steady else {})
    settings = Settings(repositories=(tmp_path,), backend_config={"fake": option})
    model = EntryLoader(settings)(repository.read(tmp_path, "m"), 1)
    session = model._session
    assert isinstance(session, FakeSession)
    assert len(session.ran) == runs
    model.close()


@pytest.mark.parametrize("text", ["", "-1", "1e3", "soon", "99999", "nan", "٣"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^backend option warmup is '{text}', allowed are seconds from 0 to 9999$"):
        warmup.seconds(text)


def test_times_are_seconds() -> None:
    assert (warmup.seconds("0"), warmup.seconds("0.25"), warmup.seconds(warmup.SECONDS)) == (0.0, 0.25, 1.0)
