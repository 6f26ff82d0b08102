"""A backend that does what a small TOML file says: for tests, in-process and behind a really started server.

`model.fake`:

    [[input]]                     # as a model file would declare it: the batch dimension included, -1 is variable
    name = "x"
    datatype = "FP32"
    shape = [-1, 4]

    [[output]]
    name = "y"                    # the input at the same position, or `from`
    datatype = "FP32"
    shape = [-1, 4]
    # from = "x"
    # constant = 3                # every element; which version answered, for instance

    [behaviour]                   # all optional
    multiply = 2                  # outputs copied from numbers are multiplied
    fail_on = 13                  # an element of this value makes the run raise BackendError
    crash_on = 14                 # … raise an exception that no backend should raise
    drop_row_on = 15              # … return a row too few
    max_rows = 8                  # more rows than this raise BackendError, as a device out of memory does
    delay_ms = 5                  # what a run takes, however many rows: capacity is known
    steady = true                 # warmed up at load, and short runs are made by the thread that releases them
    gate = "closed"               # runs wait until `session.gate.open()`
    gate_file = "go"              # runs wait until a file of this name stands beside `model.fake`
    load_error = "text"           # loading fails

`session.ran` lists what was run; `session.gate` holds runs back and tells how many have arrived.
"""

from __future__ import annotations

import time
import tomllib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np

from protos.datatypes import BY_NAME
from protos.model_config import ModelConfig, ModelIO, TensorInfo
from server.backends.base import Arrays, BackendError, Batch, LoadRequest, Session

DEFAULT_MODEL_FILENAME = "model.fake"

_BEHAVIOUR: Mapping[str, type | tuple[type, ...]] = {
    "multiply": (int, float),
    "fail_on": (int, float, str),
    "crash_on": (int, float, str),
    "drop_row_on": (int, float, str),
    "max_rows": int,
    "delay_ms": (int, float),
    "steady": bool,
    "gate": str,
    "gate_file": str,
    "load_error": str,
}

_GATE_FILE_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Ran:
    """One run that was asked for, whether it succeeded or not."""

    instance: int
    rows: int
    first: tuple[Any, ...]
    """The first element of each row of the first input."""
    shapes: Mapping[str, tuple[int, ...]]


class Gate:
    """Where runs wait while it is closed."""

    def __init__(self, is_open: bool = True) -> None:
        self._change = Condition()
        self._open = is_open
        self._arrived = 0

    def open(self) -> None:
        with self._change:
            self._open = True
            self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._open = False

    def arrived(self, number: int, timeout: float = 10.0) -> bool:
        """Wait until `number` runs in all have come to the gate; False after `timeout` seconds."""
        with self._change:
            return self._change.wait_for(lambda: self._arrived >= number, timeout)

    def enter(self) -> None:
        with self._change:
            self._arrived += 1
            self._change.notify_all()
            self._change.wait_for(lambda: self._open)


class FakeSession(Session):
    def __init__(self, io: ModelIO, sources: Mapping[str, Any], behaviour: Mapping[str, Any], folder: Path) -> None:
        self.gate = Gate(behaviour.get("gate", "open") == "open")
        self.ran: deque[Ran] = deque(maxlen=100_000)
        self.closed = False
        self.steady = bool(behaviour.get("steady", False))
        self._io = io
        self._sources = sources
        self._behaviour = behaviour
        self._delay_s = float(behaviour.get("delay_ms", 0)) / 1000
        name = behaviour.get("gate_file")
        self._gate_file = None if name is None else folder / name

    @property
    def io(self) -> ModelIO:
        return self._io

    def run(self, instance: int, batch: Batch) -> Arrays:
        if self.closed:
            raise BackendError("the session is closed")
        self.ran.append(_ran(instance, batch))
        self.gate.enter()
        while self._gate_file is not None and not self._gate_file.exists():
            time.sleep(_GATE_FILE_POLL_S)
        if self._delay_s:
            time.sleep(self._delay_s)
        behaviour = self._behaviour
        if batch.rows > behaviour.get("max_rows", batch.rows):
            raise BackendError(f"out of memory: {batch.rows} rows")
        if self._has(batch, "fail_on"):
            raise BackendError(f"a row holds {behaviour['fail_on']!r}")
        if self._has(batch, "crash_on"):
            raise ZeroDivisionError("crash_on")
        outputs = {name: self._output(name, batch) for name in batch.outputs}
        return {name: array[:-1] for name, array in outputs.items()} if self._has(batch, "drop_row_on") else outputs

    def close(self) -> None:
        self.closed = True

    def _has(self, batch: Batch, key: str) -> bool:
        marker = self._behaviour.get(key)
        if marker is None:
            return False
        if isinstance(marker, str):
            marker = marker.encode()
        return any(
            bool((array == marker).any()) for array in batch.inputs.values()
            if (array.dtype == object) == isinstance(marker, bytes)
        )  # fmt: skip

    def _output(self, name: str, batch: Batch) -> np.ndarray[Any, Any]:
        info = next(info for info in self._io.outputs if info.name == name)
        kind, source = self._sources[name]
        if kind == "constant":
            rows = (batch.rows,) if info.shape[:1] == (-1,) else info.shape[:1]
            return np.full(rows + tuple(max(dim, 1) for dim in info.shape[1:]), source, dtype=info.datatype.numpy)
        array = batch.inputs.get(source)
        if array is None:
            raise BackendError(f"input '{source}' is not there for output '{name}'")
        factor = self._behaviour.get("multiply")
        if factor is None or array.dtype == object:
            return array.copy()  # never the input itself: its memory is written to again
        return np.asarray(array * factor, dtype=info.datatype.numpy)


class Fake:
    name = "fake"

    def cpu_instances(self, config: ModelConfig, options: Mapping[str, str]) -> int:
        return 1

    def gpus(self) -> tuple[int, ...]:
        return ()

    def load(self, request: LoadRequest) -> FakeSession:
        path = request.path
        try:
            text = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BackendError(f"{path.name}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise BackendError(f"{path.name}: is no TOML: {error}") from error
        behaviour = _behaviour(text.get("behaviour", {}), path.name)
        if "load_error" in behaviour:
            raise BackendError(str(behaviour["load_error"]))
        inputs = tuple(_info(row, path.name) for row in text.get("input", []))
        rows = text.get("output", [])
        io = ModelIO(inputs, tuple(_info(row, path.name) for row in rows))
        return FakeSession(io, {row["name"]: _source(row, i, io, path.name) for i, row in enumerate(rows)}, behaviour,
                           path.parent)  # fmt: skip


def _ran(instance: int, batch: Batch) -> Ran:
    shapes = {name: tuple(array.shape) for name, array in batch.inputs.items()}
    array = next(iter(batch.inputs.values()), None)
    if array is None or not array.size:
        return Ran(instance, batch.rows, (), shapes)
    rows = array.reshape(batch.rows if array.ndim and array.shape[0] == batch.rows else 1, -1)
    return Ran(instance, batch.rows, tuple(rows[:, 0].tolist()), shapes)


def _behaviour(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for key, value in table.items():
        allowed = _BEHAVIOUR.get(key)
        if allowed is None:
            raise BackendError(f"{where}: unknown behaviour '{key}'; there are: {', '.join(_BEHAVIOUR)}")
        if not isinstance(value, allowed) or (key == "gate" and value not in ("open", "closed")):
            raise BackendError(f"{where}: behaviour '{key}' cannot be {value!r}")
    return table


def _info(row: Mapping[str, Any], where: str) -> TensorInfo:
    try:
        return TensorInfo(row["name"], BY_NAME[row["datatype"]], tuple(row["shape"]))
    except (KeyError, TypeError) as error:
        raise BackendError(f"{where}: a tensor needs name, datatype and shape: {error}") from error


def _source(row: Mapping[str, Any], position: int, io: ModelIO, where: str) -> tuple[str, Any]:
    if "constant" in row:
        return "constant", row["constant"]
    if "from" in row:
        return "input", row["from"]
    if position >= len(io.inputs):
        raise BackendError(f"{where}: output '{row['name']}' needs 'from' or 'constant'")
    return "input", io.inputs[position].name
