"""The model's door: submit never raises, and what comes back is right. On the fake backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from protos.model_config import ModelConfig
from server.backends.base import Device
from server.errors import Internal, InvalidRequest
from server.model import Model
from server.request import InferRequest, Response, Tensor
from tests.server.core import FP32, MS, HandClock, Sheet, config, load_fake, logged, request, serving


def test_submit_answers_with_the_rows_sent(tmp_path: Path) -> None:
    with serving(tmp_path, "multiply = 2") as (model, _, sheet):
        made = request(1.0, 2.0)
        model.submit(made, sheet)
        sheet.wait(1)
        assert sheet.values(made, "y") == [[2.0] * 4, [4.0] * 4]


def test_an_invalid_request_is_answered_within_submit_and_touches_nobody(tmp_path: Path) -> None:
    with serving(tmp_path) as (model, session, sheet):
        bad = InferRequest("m", (Tensor("x", FP32, np.zeros((1, 5), np.float32)),), id="r1")
        model.submit(bad, sheet)
        assert isinstance(sheet.results[bad], InvalidRequest)
        assert str(sheet.results[bad]).startswith("[request id: r1] unexpected shape for input 'x' for model 'm'.")
        assert not session.ran
        assert model.pending() == 0
        assert model.statistics().failures["OTHER"] == 1


def test_a_bug_in_submit_becomes_an_answer(tmp_path: Path) -> None:
    with logged() as records, serving(tmp_path) as (model, _, sheet):
        broken = InferRequest("m", (None,))  # type: ignore[arg-type]
        model.submit(broken, sheet)
        assert isinstance(sheet.results[broken], Internal)
        assert "AttributeError" not in str(sheet.results[broken])
        assert [record.getMessage() for record in records] == ["submit failed"]


def test_the_model_says_what_it_is(tmp_path: Path) -> None:
    with serving(tmp_path) as (model, session, _):
        assert (model.name, model.version) == ("m", 1)
        assert model.io is session.io
        assert model.config == config()
        assert repr(model) == "<Model m/1 1 instances, 0 pending>"


def test_requests_of_different_variable_shapes_do_not_share_a_batch(tmp_path: Path) -> None:
    session = load_fake(tmp_path, 'gate = "closed"', dims="[-1, -1]")
    model = Model("m", 1, config(8, dims=(-1,)), session, (Device(),), HandClock())
    sheet = Sheet()
    model.submit(request(0.0), sheet)
    assert session.gate.arrived(1)
    requests = [request(1.0, width=3), request(2.0, width=3), request(3.0, width=5), request(4.0, width=3)]
    for made in requests:
        model.submit(made, sheet)
    session.gate.open()
    sheet.wait(5)
    assert [ran.shapes["x"] for ran in session.ran] == [(1, 4), (2, 3), (1, 5), (1, 3)]
    assert sheet.order[1:] == requests
    model.close()


def test_a_model_without_batch_dimension_is_run_one_request_at_a_time(tmp_path: Path) -> None:
    session = load_fake(tmp_path, dims="[2, 4]")
    base = config(0, dims=(2, 4))
    settings = ModelConfig("m", 0, base.inputs, base.outputs, backend="fake")
    model = Model("m", 1, settings, session, (Device(),), HandClock())
    sheet = Sheet()
    requests = [request(float(i), float(i)) for i in range(3)]
    for made in requests:
        model.submit(made, sheet)
    sheet.wait(3)
    assert [ran.shapes["x"] for ran in session.ran] == [(2, 4)] * 3
    assert model.statistics().inference_count == 3
    model.close()


def test_statistics_are_true_to_the_nanosecond(tmp_path: Path) -> None:
    clock = HandClock()
    with serving(tmp_path, 'gate = "closed"', clock=clock) as (model, session, sheet):
        start = clock()
        model.submit(request(0.0, arrived_ns=start - 1 * MS), sheet)
        assert session.gate.arrived(1)
        clock.advance(10 * MS)
        model.submit(request(1.0, 2.0), sheet)
        model.submit(request(3.0), sheet)
        clock.advance(5 * MS)
        session.gate.open()
        sheet.wait(3)
        assert model.drain(20)
        got = model.statistics()
    assert (got.inference_count, got.execution_count) == (4, 2)
    assert (got.success.count, got.success.ns) == (3, 16 * MS + 5 * MS + 5 * MS)
    assert (got.queue.count, got.queue.ns) == (3, 2 * 5 * MS)
    assert (got.compute_infer.count, got.compute_infer.ns) == (3, 15 * MS)
    assert [(b.batch_size, b.compute_infer.count, b.compute_infer.ns) for b in got.batches] == [
        (1, 1, 15 * MS),
        (3, 1, 0),
    ]
    assert got.request_latency.count == got.queue_latency.count == 3
    assert got.fail.count == 0
    assert got.last_inference_ms > 1_700_000_000_000


def test_the_timestamps_of_a_request_are_set_on_its_way(tmp_path: Path) -> None:
    clock = HandClock()
    with serving(tmp_path, clock=clock) as (model, _, sheet):
        made = request(1.0, 2.0)
        model.submit(made, sheet)
        sheet.wait(1)
        assert (made.arrived_ns, made.queued_ns, made.rows) == (clock(), clock(), 2)
        assert isinstance(sheet.results[made], Response)


def test_padding_is_counted_and_shows_in_no_answer(tmp_path: Path) -> None:
    session = load_fake(tmp_path, 'gate = "closed"', dims="[-1, -1]")
    settings = replace(config(8, dims=(-1,)), parameters={"demiglace.padding": "length: x[0]=0 -> y[0]"})
    model = Model("m", 1, settings, session, (Device(),), HandClock())
    sheet = Sheet()
    model.submit(request(9.0, width=7), sheet)
    assert session.gate.arrived(1)
    requests = [request(1.0, width=2), request(2.0, width=4), request(3.0, width=3)]
    for made in requests:
        model.submit(made, sheet)
    session.gate.open()
    sheet.wait(4)
    assert [ran.shapes["x"] for ran in session.ran] == [(1, 7), (3, 4)]
    assert [sheet.values(made) for made in requests] == [[[1.0] * 2], [[2.0] * 4], [[3.0] * 3]]
    got = model.statistics()
    assert (got.padding_elements, got.padding_computed) == (2 + 0 + 1, 7 + 3 * 4)
    model.close()


def test_kept_memory_shows_nothing_of_the_batch_before(tmp_path: Path) -> None:
    with serving(tmp_path, 'gate = "closed"', settings=config(8)) as (model, session, sheet):
        model.submit(request(0.0), sheet)
        assert session.gate.arrived(1)
        requests = [request(*[float(10 * i + j) for j in range(1 + i % 3)]) for i in range(40)]
        for made in requests:
            model.submit(made, sheet)
        session.gate.open()
        sheet.wait(41)
        assert all(sheet.values(made) == made.inputs[0].array.tolist() for made in requests)
        assert len(session.ran) < 20, "several to a batch"
