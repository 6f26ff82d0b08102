"""The card: the machine-readable proof beside a version (`card.json`). Written, read and verified here only.

It says what was done to a model, what that cost in quality and gained in size and latency, measured on which host,
and the SHA-256 of every file that it speaks of. Schema version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = "demiglace.card/1"
FILENAME = "card.json"


class CardError(ValueError):
    """A card that cannot be read or does not match its files: one line naming file, what was found and expected."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of the trail."""

    name: str
    parameters: Mapping[str, Any]
    seconds: float
    effect: Mapping[str, Any] = field(default_factory=dict)
    """What the pass itself counted, e.g. `{"MatMul quantized": 36}`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, the untouched original against the result, on the same held-out samples."""

    name: str
    baseline: float
    result: float
    higher_is_better: bool
    data: str
    samples: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Served latency in milliseconds at one batch size, measured through the started server, one request in flight."""

    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    baseline_p50: float
    baseline_p99: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Card:
    model: str
    version: int
    created: str
    """UTC, ISO 8601."""
    trail: tuple[Step, ...]
    metrics: tuple[Metric, ...]
    output_error: Mapping[str, Mapping[str, float]]
    """Per output name: `max_abs`, `mean_abs`, `cosine` of the result against the original."""
    baseline_bytes: int
    bytes: int
    latency: tuple[Latency, ...]
    host: Mapping[str, Any]
    """cpu, cores, instruction sets that matter (vnni, amx), memory, gpu, os."""
    files: Mapping[str, str]
    """File name inside the version folder (posix, relative) to its SHA-256; every file but the card itself."""
    inputs_sha256: Mapping[str, str]
    """`source`, `calibration`, `evaluation`, `recipe`: SHA-256 of what went in."""
    libraries: Mapping[str, str]
    budget: Mapping[str, float] = field(default_factory=dict)
    schema: str = SCHEMA


def write(card: Card, folder: Path) -> Path:
    """Write `card.json` into a (still staged) version folder."""
    raise NotImplementedError


def read(folder: Path) -> Card | None:
    """The card in a version folder, or None where there is none. Raises CardError when it cannot be understood."""
    raise NotImplementedError


def verify(card: Card, folder: Path) -> None:
    """Compare every file's SHA-256 with the card. Raises CardError naming the first one missing, extra or different."""
    raise NotImplementedError
