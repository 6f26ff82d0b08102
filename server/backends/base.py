"""The backend contract: a `Backend` loads a version folder into a `Session`; a `Session` runs batches of arrays.

A backend never sees a request. To add one: a file beside this one with a class that has `name` and `load`, and a row
in `backends/__init__.py`; `tests/server/backends/test_conformance.py` then runs over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from protos.model_config import ModelConfig, ModelIO

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


class BackendError(Exception):
    """A model that does not load or a run that fails: one line for the user, no traceback."""


class Batch(NamedTuple):
    """What an instance runs: one array per input; where the model batches, `rows` is their first dimension.

    Shapes and dtypes are the model's own (after `reshape`). A session must not change the arrays.
    """

    inputs: Arrays
    rows: int
    outputs: tuple[str, ...]
    """The outputs that somebody asked for; a session may give more."""


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """Where an instance runs: `cpu`, or `cuda` with its index."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return "CPU" if self.kind == "cpu" else f"GPU {self.index}"


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """All that a backend gets to know."""

    path: Path
    """The model file (or folder), already checked against the card."""
    config: ModelConfig
    """As in the file, not yet auto-completed: `Session.io` is what completes it."""
    devices: tuple[Device, ...]
    """One per instance, in instance order; `run` is told the position."""
    options: Mapping[str, str]
    """`--backend-config=<backend>,<key>=<value>`."""
    verified: bool = False
    """Whether a card vouched for the file; one that nobody vouched for is first loaded in a child process."""


class Session(Protocol):
    """One loaded model, its weights shared by all instances of a device. Inherit from it for the defaults."""

    threads: int = 0
    """Threads that one run may use; 0: unknown."""
    steady: bool = False
    """Whether the time of a run depends on the shapes of its inputs alone, not on their values. Only then is it run for
    warm-up, and only then may the thread that reads the sockets make short runs: no values can make them long."""

    @property
    def io(self) -> ModelIO:
        """Inputs and outputs as the model file declares them."""
        ...

    def run(self, instance: int, batch: Batch) -> Arrays:
        """Run one batch; for one instance once at a time, from any thread. Raises BackendError.

        The arrays of `batch` are written to again after the run: neither keep them nor return views of them. What is
        returned is handed on without a copy and must not be written to again.
        """
        ...

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Uninitialised memory for batches: where the device likes it best."""
        return np.empty(shape, dtype)

    def close(self) -> None:
        """Give back memory and devices; called once, after the last run."""
        ...


class Backend(Protocol):
    name: str
    """As in `config.pbtxt`'s `backend`."""

    def cpu_instances(self, config: ModelConfig, options: Mapping[str, str]) -> int:
        """How many instances a CPU group has when its count is 0 (Triton: 2 for onnxruntime, else 1)."""
        ...

    def gpus(self) -> tuple[int, ...]:
        """Indices of the GPUs that this backend can use on this host; empty: none."""
        ...

    def load(self, request: LoadRequest) -> Session:
        """Raises BackendError."""
        ...
