"""The directory grammar of a model repository: list, read, write an entry.

    <root>/<name>/config.pbtxt            optional
    <root>/<name>/<version>/model.onnx    or a folder of that name
    <root>/<name>/<version>/card.json     optional

Names that begin with a dot are staging and never listed. A write is staged under such a name on the same file
system, fsynced, then renamed, so that a reader sees the old entry or the new one and a crash leaves either whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protos.card import Card
from protos.model_config import ModelConfig

CONFIG_FILENAME = "config.pbtxt"


class RepositoryError(ValueError):
    """An entry that cannot be read or written; one line naming path, what was found and what is allowed."""


class NotFound(RepositoryError):  # noqa: N818 - named like the status it becomes
    """No entry of that name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's folder."""

    name: str
    path: Path
    config: ModelConfig
    """As in the file (before auto-completion); only name, backend and platform derived where there is no file."""
    versions: tuple[int, ...]
    """All version folders there are, ascending."""

    def version_path(self, version: int) -> Path:
        return self.path / str(version)


def check_name(name: str) -> None:
    """Raises RepositoryError for a name that is empty, too long, or could be anything but one plain folder name."""
    raise NotImplementedError


def names(root: Path) -> tuple[str, ...]:
    """Names of all entries, sorted."""
    raise NotImplementedError


def read(root: Path, name: str) -> Entry:
    """Raises NotFound, RepositoryError, or ConfigError (from the config file)."""
    raise NotImplementedError


def model_file(entry: Entry, version: int) -> Path:
    """The file (or folder) that the backend opens: `default_model_filename` or the backend's default."""
    raise NotImplementedError


def write(root: Path, config: ModelConfig, files: Mapping[str, Path], card: Card | None = None,
          version: int | None = None, extra: Mapping[str, Path] | None = None) -> Entry:
    """Publish one version (the next number unless given) of `config.name`, all at once.

    `files` go into the version folder, `extra` (labels …) beside `config.pbtxt`; keys are posix relative names. The
    card's `model`, `version` and `files` are filled in here, where they are known.
    """
    raise NotImplementedError
