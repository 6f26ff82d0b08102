"""The fake backend is a tool that other tests trust: each of its tricks is shown to work."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from protos.model_config import ModelConfig
from server.backends import get
from server.backends.base import BackendError, Batch, Device, LoadRequest
from tests.server.core import load_fake, model_text


def ones(rows: int = 1) -> Batch:
    return Batch({"x": np.ones((rows, 4), np.float32)}, rows, ("y",))


@pytest.mark.parametrize("trick", ["fail_on = 1.0", "max_rows = 0"])
def test_a_marked_run_raises_a_backend_error_and_is_recorded(tmp_path: Path, trick: str) -> None:
    session = load_fake(tmp_path, trick)
    with pytest.raises(BackendError):
        session.run(0, ones())
    assert [(ran.rows, ran.first) for ran in session.ran] == [(1, (1.0,))]


def test_a_crash_is_no_backend_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load_fake(tmp_path, "crash_on = 1.0").run(0, ones())


def test_a_dropped_row_is_missing(tmp_path: Path) -> None:
    assert load_fake(tmp_path, "drop_row_on = 1.0").run(0, ones(3))["y"].shape == (2, 4)


def test_a_closed_gate_holds_runs_until_it_opens(tmp_path: Path) -> None:
    session = load_fake(tmp_path, 'gate = "closed"')
    done: list[int] = []
    thread = Thread(target=lambda: done.append(len(session.run(0, ones()))))
    thread.start()
    assert session.gate.arrived(1)
    assert not done
    session.gate.open()
    thread.join(10)
    assert done == [1]
    assert not session.gate.arrived(2, timeout=0.0)


def test_a_gate_file_holds_runs_until_it_is_there(tmp_path: Path) -> None:
    session = load_fake(tmp_path, 'gate_file = "go"')
    thread = Thread(target=session.run, args=(0, ones()))
    thread.start()
    assert session.gate.arrived(1)
    (tmp_path / "go").touch()
    thread.join(10)
    assert not thread.is_alive()


def test_a_constant_output_tells_versions_apart(tmp_path: Path) -> None:
    text = model_text() + '[[output]]\nname = "version"\ndatatype = "INT64"\nshape = [-1, 1]\nconstant = 3\n'
    path = tmp_path / "model.fake"
    path.write_text(text.replace("[behaviour]\n\n", ""))
    session = get("fake").load(LoadRequest(path, ModelConfig("m"), (Device(),), {}))
    arrays = session.run(0, Batch({"x": np.ones((2, 4), np.float32)}, 2, ("version",)))
    assert arrays["version"].tolist() == [[3], [3]]


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("speed = 3", "unknown behaviour 'speed'; there are: multiply, "),
        ('delay_ms = "long"', "behaviour 'delay_ms' cannot be 'long'"),
        ('gate = "ajar"', "behaviour 'gate' cannot be 'ajar'"),
        ('load_error = "no luck"', "no luck"),
    ],
)
def test_a_behaviour_that_is_unknown_or_wrong_is_refused(tmp_path: Path, behaviour: str, text: str) -> None:
    with pytest.raises(BackendError, match=text):
        load_fake(tmp_path, behaviour)
