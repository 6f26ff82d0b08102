"""The card: the machine-readable proof beside a version (`card.json`). Written, read and verified here only.

It says what was done to a model, what that cost in quality and gained in size and latency, measured on which host,
and the SHA-256 of every file that it speaks of. Schema version 1.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from protos import paths

SCHEMA = "demiglace.card/1"
FILENAME = "card.json"
MAX_BYTES = 16 << 20
"""A card is some kilobytes; more is not one."""


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
    """Write `card.json` into a (still staged) version folder. Raises CardError for what JSON cannot hold."""
    path = folder / FILENAME
    path.write_text(dumps(card), encoding="utf-8")
    return path


def dumps(card: Card) -> str:
    """The card's JSON. Raises CardError for a parameter that JSON has no form for."""
    try:
        return json.dumps(_finite(asdict(card)), indent=1, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CardError(f"card of '{card.model}': cannot be written as JSON: {error}") from None


def read(folder: Path) -> Card | None:
    """The card in a version folder, or None where there is none. Raises CardError when it cannot be understood."""
    path = folder / FILENAME
    where = f"{folder.parent.name}/{folder.name}/{FILENAME}"
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise CardError(f"{where}: is no regular file")
        if found.st_size > MAX_BYTES:
            raise CardError(f"{where}: {found.st_size} bytes, at most {MAX_BYTES} are allowed")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CardError(f"{where}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CardError(f"{where}: byte {error.start} is not valid UTF-8") from None
    return loads(text, where)


def loads(text: str, where: str) -> Card:
    """The card in `text`; `where` begins the text of a CardError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"{where}: not JSON: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise CardError(f"{where}: schema is {schema!r}, expected {SCHEMA!r}")
    card = _build(Card, data, where)
    assert isinstance(card, Card)
    for name, digest in card.files.items():
        if problem := paths.relative_problem(name):
            raise CardError(f"{where}: files: name {_short(name)} {problem}")
        if not _SHA256.fullmatch(digest):
            raise CardError(f"{where}: files.{name}: {_short(digest)} is no SHA-256 in lower-case hexadecimals")
    return card


def verify(card: Card, folder: Path) -> None:
    """Compare every file with its SHA-256. Raises CardError naming the first one missing, extra or different."""
    where = f"{folder.parent.name}/{folder.name}"
    if str(card.version) != folder.name:
        raise CardError(f"{where}/{FILENAME}: is the card of version {card.version}, expected {folder.name}")
    there = {name for name in _files_below(folder) if name != FILENAME}
    for name in sorted(card.files.keys() - there):
        raise CardError(f"{where}/{name}: missing, the card lists it")
    for name in sorted(there - card.files.keys()):
        raise CardError(f"{where}/{name}: not listed in the card")
    for name, expected in sorted(card.files.items()):
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise CardError(f"{where}/{name}: cannot be read: {error.strerror}") from error
        if found != expected:
            raise CardError(f"{where}/{name}: SHA-256 is {found}, the card says {expected}")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a version folder but the card, by posix relative name: what `Card.files` holds."""
    return {name: sha256(folder / name) for name in sorted(_files_below(folder)) if name != FILENAME}


def sha256(path: Path) -> str:
    """Of a regular file's bytes, streamed. Raises OSError; for a link, pipe or device too."""
    with open(path, "rb", opener=_open_regular) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return descriptor


def _files_below(folder: Path) -> list[str]:
    """Everything that is not itself a folder; a link to one counts."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in found]


_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers; they are written as strings, in protobuf's spelling."""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated type `kind` out of decoded JSON; keys, types and lengths are all checked."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _build_record(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise CardError(f"{where}: {_short(value)}, expected a list")
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise CardError(f"{where}: {_short(value)}, expected an object")
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise CardError(f"{where}: {_short(value)}, expected {kind.__name__}")
    return kind(value)


def _build_record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise CardError(f"{where}: {_short(value)}, expected an object")
    types = get_type_hints(kind)
    if unknown := sorted(value.keys() - types.keys()):
        raise CardError(f"{where}: unknown key '{unknown[0]}', allowed are {', '.join(types)}")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if lacking := sorted(required - value.keys()):
        raise CardError(f"{where}: key '{lacking[0]}' is missing")
    return kind(**{key: _build(types[key], item, f"{where}: {key}") for key, item in value.items()})


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
