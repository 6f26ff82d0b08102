"""What the repositories' folders hold: entries by name, what changed in them, an entry with its versions to serve."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from protos import config_text, repository
from protos.model_config import ConfigError
from protos.repository import Entry, RepositoryError
from server.errors import InvalidRequest, NotFound, Unavailable
from server.logs import log

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Relative path, modification time in nanoseconds, size and inode of every file."""


class Entries:
    """One or more repository folders, read afresh at every call."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = tuple(roots)

    def names(self) -> tuple[str, ...]:
        """All entries. Raises Unavailable where a folder cannot be read, lest its models count as gone."""
        try:
            return tuple(sorted({name for root in self._roots for name in repository.names(root)}))
        except RepositoryError as error:
            log.error("repository cannot be read", reason=error)
            raise Unavailable("a model repository cannot be read, see the server's log") from None

    def check_name(self, name: str) -> None:
        """Raises InvalidRequest for what cannot be the name of an entry."""
        if not name:
            raise InvalidRequest("Model name cannot be empty. Please enter a valid name to deploy.")
        try:
            repository.check_name(name)
        except RepositoryError:
            raise InvalidRequest(
                f"invalid model name '{name[:256]}', model name must not contain path traversal characters"
            ) from None

    def read(self, name: str, config: str | None = None) -> tuple[Entry, tuple[int, ...]]:
        """The entry, with its configuration replaced by the JSON text `config` if given, and the versions to serve.

        Raises InvalidRequest or NotFound, without paths in their texts; the log has them.
        """
        roots = self._having(name)
        if not roots:
            raise NotFound(f"failed to load '{name}', failed to poll from model repository")
        if len(roots) > 1:
            raise InvalidRequest(f"failed to load '{name}', model appears in two or more repositories")
        try:
            entry = repository.read(roots[0], name)
            if config is not None:
                entry = _overridden(entry, config)
        except (RepositoryError, ConfigError, OSError) as error:
            log.error("entry cannot be read", model=name, reason=error)
            raise InvalidRequest(f"failed to load '{name}', {self.public(error)}") from None
        versions = entry.config.version_policy.select(entry.versions)
        if not versions:
            raise InvalidRequest(
                f"failed to load '{name}', at least one version must be available under the version policy of model "
                f"'{name}'"
            )
        return entry, versions

    def fingerprints(self, name: str) -> Mapping[str, Fingerprint]:
        """What is in the entry's folder, by version folder; everything else under the empty name.

        Equal before and after means that nothing was written in between, as far as the file system tells.
        """
        parts: dict[str, list[tuple[str, int, int, int]]] = {"": []}
        for root in self._having(name):
            for path in _files(root / name):
                relative = path.relative_to(root / name)
                part = relative.parts[0] if len(relative.parts) > 1 else ""
                try:
                    stat = path.stat()
                except OSError:  # gone since it was listed: the next look sees it
                    continue
                parts.setdefault(part, []).append((f"{root}/{relative}", stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return {part: tuple(sorted(files)) for part, files in parts.items()}

    def public(self, error: Exception) -> str:
        """An error's text without this host's paths: clients read it in answers and in the index."""
        text = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
        for root in self._roots:
            for path in sorted({str(root.resolve()), str(root.absolute()), str(root)}, key=len, reverse=True):
                text = text.replace(path + "/", "").replace(path, "the repository")
        return text

    def _having(self, name: str) -> tuple[Path, ...]:
        try:
            repository.check_name(name)
        except RepositoryError:
            return ()
        return tuple(root for root in self._roots if (root / name).is_dir())


def _files(folder: Path) -> Iterable[Path]:
    for base, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (Path(base, file) for file in files)


def _overridden(entry: Entry, config: str) -> Entry:
    """The entry under a client's configuration (parameter `config` of RepositoryModelLoad)."""
    replaced = config_text.from_json(config, "load parameter 'config'")
    if replaced.name not in ("", entry.name):
        raise ConfigError(f"load parameter 'config': name is '{replaced.name}', expected '{entry.name}'")
    derived = {
        key: getattr(replaced, key) or getattr(entry.config, key) for key in ("platform", "backend")
    }  # fmt: skip
    return dataclasses.replace(entry, config=dataclasses.replace(replaced, name=entry.name, **derived))
