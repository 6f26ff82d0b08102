"""The pass contract, whole. A technique is one file here: a frozen dataclass of its parameters that is a `Pass`.

The recipe's `[[pass]]` table names it by `name`; its other keys are the dataclass's fields, checked by their types
and defaults (`recipe.py`), so a pass never parses anything. The runner (`pipeline.py`) does the rest in one place:

    pipeline.check     before anything is loaded: each pass's `takes` is what the one before `gives`, its data is there
    requires           look at the artifact, raise Refused or RecipeError; change nothing
    apply              the transformation; the artifact that came in stays as it was
    ensures            the runner's: kind, names, dtypes and shapes of inputs and outputs are unchanged, the file loads
                       and runs; then the pass's own `ensures`
    trail              the runner adds name, parameters, seconds and `effect` to the artifact's trail, writes the
                       checkpoint, and will not run the pass again for the same input and parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from compressor.artifact import Artifact, Kind

Sample = Mapping[str, np.ndarray[Any, Any]]
"""One row per input, the batch dimension excluded."""


@dataclass(frozen=True, slots=True)
class Host:
    """What the artifact is made for; passes refuse by it what is known to be slow there."""

    cpu: str
    cores: int
    flags: frozenset[str]
    """Of the instruction sets that decide: `vnni`, `amx`, `avx512f`, `avx2`."""
    gpu: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a pass may use beside the artifact."""

    folder: Path
    """Empty and the pass's own; what it writes here is the checkpoint."""
    host: Host
    calibration: Callable[[], Iterator[Sample]] | None
    """Streams the recipe's calibration samples anew at each call; None where the recipe names none."""
    insist: bool
    """The recipe's `insist = true`: do it even where it is refused; never where the result would be wrong."""
    seed: int
    progress: Callable[[int, int, str], None]
    """(done, total, what), for the progress bar."""


@dataclass(frozen=True, slots=True)
class Outcome:
    artifact: Artifact
    effect: Mapping[str, Any] = field(default_factory=dict)
    """Counts worth telling: goes into the trail, the card and the report."""


class Pass(Protocol):
    name: ClassVar[str]
    takes: ClassVar[Kind]
    gives: ClassVar[Kind]
    needs_calibration: ClassVar[bool]

    def requires(self, artifact: Artifact, context: Context) -> None: ...

    def apply(self, artifact: Artifact, context: Context) -> Outcome: ...

    def ensures(self, before: Artifact, after: Artifact, context: Context) -> None: ...
