"""A model on its way through the passes: what it is, what it eats and gives, what was done to it so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.card import Step
from protos.datatypes import Datatype

if TYPE_CHECKING:
    import torch


class Kind(Enum):
    """The forms a model has on its way."""

    TORCH = "torch"
    ONNX = "onnx"


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension of any size; equal names mean equal sizes."""

    name: str
    minimum: int = 1
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output with all its dimensions, fixed (int) or free (Axis); the batch axis is called `batch`."""

    name: str
    datatype: Datatype
    shape: tuple[int | Axis, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """Exactly one of `module` and `path` is set, as `kind` says.

    `path` is a whole ONNX model that the next pass may read but not change: each pass writes a file of its own.
    `module` is called with its inputs in the order of `inputs`, by position, and gives one tensor, or a tuple in the
    order of `outputs`; it is in eval mode, on the CPU.
    """

    kind: Kind
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    module: torch.nn.Module | None = None
    path: Path | None = None
    trail: tuple[Step, ...] = field(default=())

    def became(self, **changes: Any) -> Artifact:
        """A copy with other fields; a pass returns one of these."""
        return replace(self, **changes)
