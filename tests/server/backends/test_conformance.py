"""What every backend keeps to: one suite over all of them. A new backend adds a row to `models.MAKERS`."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from protos.datatypes import BY_NAME, DATATYPES, Datatype
from protos.model_config import ModelIO, TensorInfo
from server import backends
from server.backends.base import Arrays, BackendError, Batch
from tests.server.backends.models import GPU_MAKERS, MAKERS, Maker

Array = np.ndarray[Any, Any]


ALL = (*MAKERS, *(pytest.param(maker, marks=pytest.mark.gpu) for maker in GPU_MAKERS))


@pytest.fixture(params=ALL, ids=lambda maker: f"{maker.backend}-{maker.device.kind}")
def maker(request: pytest.FixtureRequest) -> Maker:
    found: Maker = request.param
    return found


def batch(array: Array, rows: int | None = None) -> Batch:
    return Batch({"x": array}, array.shape[0] if rows is None else rows, ("y",))


def sample(datatype: Datatype) -> Array:
    if datatype.name == "BYTES":
        return np.array([[b"", "héllo".encode(), b"a\0b"], [b"x" * 1000, b" ", b"1"]], dtype=object)
    if datatype.name == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype.name.startswith(("FP", "BF")):
        return np.array([[0.5, -2.0, np.inf], [1.0, 0.0, 96.0]], dtype=datatype.numpy)
    info = np.iinfo(datatype.numpy)
    return np.array([[info.min, info.max, 1], [0, 2, 3]], dtype=datatype.numpy)


def test_every_backend_is_in_the_suite() -> None:
    assert {maker.backend for maker in MAKERS} == set(backends.names())


def test_io_is_what_the_file_declares(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.double(tmp_path))
    fp32 = BY_NAME["FP32"]
    assert session.io == ModelIO((TensorInfo("x", fp32, (-1, 4)),), (TensorInfo("y", fp32, (-1, 4)),))
    session.close()


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_it_runs_any_number_of_rows(maker: Maker, tmp_path: Path, rows: int) -> None:
    session = maker.load(maker.double(tmp_path))
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    arrays = session.run(0, batch(x))
    assert arrays["y"].tolist() == (2 * x).tolist()
    session.close()


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda datatype: datatype.name)
def test_every_datatype_passes_through_unchanged(maker: Maker, tmp_path: Path, datatype: Datatype) -> None:
    session = maker.load(maker.echo(tmp_path, datatype))
    x = sample(datatype)
    y = session.run(0, batch(x))["y"]
    assert y.dtype == datatype.numpy
    assert y.shape == x.shape
    assert y.tolist() == x.tolist()
    if datatype.name == "BYTES":
        assert all(isinstance(element, bytes) for element in y.ravel())
    session.close()


def test_it_runs_without_a_batch_dimension(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.scalar(tmp_path))
    y = session.run(0, batch(np.array(3.0, np.float32), rows=1))["y"]
    assert y.shape == ()
    assert float(y) == 3.0
    session.close()


def test_it_neither_changes_its_inputs_nor_needs_to_write_to_them(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.double(tmp_path))
    x = np.frombuffer(np.ones((2, 4), np.float32).tobytes(), np.float32).reshape(2, 4)
    session.run(0, batch(x))
    assert x.tolist() == np.ones((2, 4)).tolist()
    session.close()


def test_outputs_of_one_run_are_untouched_by_the_next(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.double(tmp_path))
    first = session.run(0, batch(np.ones((2, 4), np.float32)))["y"]
    session.run(0, batch(np.full((2, 4), 9.0, np.float32)))
    assert first.tolist() == np.full((2, 4), 2.0).tolist()
    session.close()


@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda datatype: datatype.name)
def test_what_it_returns_is_its_own_and_not_the_memory_of_the_batch(
    maker: Maker, tmp_path: Path, datatype: Datatype
) -> None:
    session = maker.load(maker.echo(tmp_path, datatype))
    wide = np.repeat(sample(datatype), 2048, axis=0)
    x = session.allocate(wide.shape, wide.dtype)
    x[:] = wide
    y = session.run(0, batch(x))["y"]
    expected = x.tolist()
    x[:] = np.zeros(1, datatype.numpy) if datatype.name != "BYTES" else b"!"  # the next batch is written to its place
    assert not np.shares_memory(x, y)
    assert y.tolist() == expected
    session.close()


def test_arrays_that_are_not_contiguous_are_fine(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.double(tmp_path))
    x = np.arange(16, dtype=np.float32).reshape(4, 4).T
    assert session.run(0, batch(x))["y"].tolist() == (2 * x).tolist()
    session.close()


def test_instances_run_at_the_same_time(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.double(tmp_path), instances=3)
    found: dict[int, Arrays] = {}

    def run(instance: int) -> None:
        for _ in range(20):
            found[instance] = session.run(instance, batch(np.full((3, 4), float(instance), np.float32)))

    threads = [Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {i: float(arrays["y"][0, 0]) for i, arrays in found.items()} == {0: 0.0, 1: 2.0, 2: 4.0}
    session.close()


@pytest.mark.parametrize("kind", ["broken", "missing"])
def test_a_file_that_is_no_model_is_one_clear_line(maker: Maker, tmp_path: Path, kind: str) -> None:
    path = maker.broken(tmp_path)
    if kind == "missing":
        path.unlink()
    with pytest.raises(BackendError) as caught:
        maker.load(path)
    text = str(caught.value)
    assert text.startswith(path.name)
    assert "\n" not in text
    assert str(tmp_path) not in text, "error texts reach clients"


def test_a_run_that_fails_is_a_backend_error_of_one_line(maker: Maker, tmp_path: Path) -> None:
    session = maker.load(maker.double(tmp_path))
    with pytest.raises(BackendError) as caught:
        session.run(0, Batch({}, 1, ("y",)))
    assert "\n" not in str(caught.value)
    session.close()


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(BackendError, match="unknown backend 'tensorrt'; there are: fake, onnxruntime"):
        backends.get("tensorrt")


def test_a_platform_name_means_its_backend() -> None:
    assert backends.get("onnxruntime_onnx") is backends.get("onnxruntime")
