"""The directory grammar of a model repository: list, read, write an entry.

    <root>/<name>/config.pbtxt            optional
    <root>/<name>/<version>/model.onnx    or a folder of that name
    <root>/<name>/<version>/card.json     optional

Names that begin with a dot are staging and never listed. A write is staged under such a name on the same file
system, fsynced, then renamed, so that a reader sees the old entry or the new one and a crash leaves either whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from protos import card as cards
from protos import config_text, paths, platforms, staging
from protos.card import Card
from protos.model_config import ConfigError, ModelConfig
from protos.staging import Disk

CONFIG_FILENAME = "config.pbtxt"
READ_ATTEMPTS = 100
"""A read is begun again when the entry was changed meanwhile; this often it is not, unless something is wrong."""


class RepositoryError(ValueError):
    """An entry that cannot be read or written; one line naming path, what was found and what is allowed."""


class NotFound(RepositoryError):
    """No entry of that name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model's folder."""

    name: str
    path: Path
    config: ModelConfig
    """As in the file (before auto-completion), with name, backend and platform derived where it leaves them out."""
    versions: tuple[int, ...]
    """All version folders there are, ascending."""

    def version_path(self, version: int) -> Path:
        return self.path / str(version)


def check_name(name: str) -> None:
    """Raises RepositoryError for a name that is empty, too long, or could be anything but one plain folder name."""
    if problem := paths.name_problem(name):
        raise RepositoryError(f"entry name {name[: paths.NAME_BYTES]!r} {problem}")


def names(root: Path) -> tuple[str, ...]:
    """Names of all entries, sorted. Raises RepositoryError where `root` is no readable folder."""
    try:
        return tuple(sorted(child.name for child in root.iterdir() if _is_entry(child)))
    except OSError as error:
        raise RepositoryError(f"{root}: is no model repository: {error.strerror}") from None


def _is_entry(path: Path) -> bool:
    return not paths.name_problem(path.name) and path.is_dir()


def read(root: Path, name: str) -> Entry:
    """Raises NotFound, RepositoryError, or ConfigError (from the config file)."""
    check_name(name)
    path = root / name
    for _ in range(READ_ATTEMPTS):
        before = _identity(path)
        failure: ValueError | None = None
        try:
            entry = _read(path)
        except (RepositoryError, ConfigError) as error:
            failure = error
        except FileNotFoundError as error:
            failure = RepositoryError(f"{name}: cannot be read: {error.strerror}")
        except OSError as error:
            raise RepositoryError(f"{name}: cannot be read: {error.strerror}") from None
        # a publisher may have swapped the folder between two steps of the above
        if _identity(path) != before:
            continue
        if failure is not None:
            raise failure
        return entry
    raise RepositoryError(f"{name}: was changed at each of {READ_ATTEMPTS} attempts to read it")


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        raise NotFound(f"no entry '{path.name}' in the repository") from None
    if not stat.S_ISDIR(found.st_mode):
        raise NotFound(f"no entry '{path.name}' in the repository: it is no folder")
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _read(path: Path) -> Entry:
    versions = _versions(path)
    present = _listed(path / str(versions[0])) if versions else []
    config = _config(path) or ModelConfig(path.name)
    if config.name not in ("", path.name):
        raise ConfigError(
            f"{path.name}/{CONFIG_FILENAME}: name: unexpected directory name '{path.name}' for model '{config.name}',"
            " directory name must equal model name"
        )
    try:
        return Entry(path.name, path, platforms.derive(replace(config, name=path.name), present), versions)
    except ConfigError as error:
        raise ConfigError(f"{path.name}/{CONFIG_FILENAME}: {error}") from None


def _listed(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def _versions(path: Path) -> tuple[int, ...]:
    found = ((paths.version_number(child.name), child) for child in path.iterdir())
    return tuple(sorted(version for version, child in found if version is not None and child.is_dir()))


def _config(path: Path) -> ModelConfig | None:
    """What the entry's file says; None where there is no file. Raises ConfigError, RepositoryError, OSError."""
    where = f"{path.name}/{CONFIG_FILENAME}"
    file = path / CONFIG_FILENAME
    try:
        file.lstat()
    except FileNotFoundError:
        return None
    _check_regular(file, path)
    with file.open("rb") as stream:
        data = stream.read(config_text.MAX_BYTES + 1)
    try:
        return config_text.parse(data.decode(), where)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: byte {error.start} is not valid UTF-8") from None


def model_file(entry: Entry, version: int) -> Path:
    """The file (or folder) that the backend opens: `default_model_filename` or the backend's default.

    Every file of the version must be a regular one that lies in the entry; links inside it are followed. Raises
    RepositoryError.
    """
    folder = entry.version_path(version)
    if version not in entry.versions:
        raise RepositoryError(f"{entry.name}: has no version {version}; there are {list(entry.versions)}")
    try:
        present = _listed(folder)
        for below, folders, files in os.walk(folder, onerror=_raise):
            for name in (*folders, *files):
                _check_regular(Path(below, name), entry.path, folder_allowed=True)
    except OSError as error:
        raise RepositoryError(f"{entry.name}/{version}: cannot be read: {error.strerror}") from None
    filename = platforms.model_filename(entry.config, present)
    if not filename:
        known = ", ".join(sorted({platform.filename for platform in platforms.PLATFORMS}))
        raise RepositoryError(f"{entry.name}/{version}: no backend is named and no model file is there; known: {known}")
    if not (folder / filename).exists():
        found = ", ".join(present) or "no files"
        raise RepositoryError(f"{entry.name}/{version}: has no '{filename}'; there are {found}")
    return folder / filename


def _raise(error: OSError) -> None:
    raise error


def _check_regular(path: Path, entry: Path, folder_allowed: bool = False) -> None:
    """Raises RepositoryError for a device, pipe or socket, and for a link that leads out of the entry."""
    shown = f"{entry.name}/{path.relative_to(entry).as_posix()}"
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError):
        raise RepositoryError(f"{shown}: is a link that leads nowhere") from None
    if not resolved.is_relative_to(entry.resolve()):
        raise RepositoryError(f"{shown}: is a link that leads out of the entry")
    if not (stat.S_ISREG(mode) or (folder_allowed and stat.S_ISDIR(mode))):
        raise RepositoryError(f"{shown}: is no regular file")


# --- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Publication:
    """One version to put in place, checked."""

    root: Path
    config: ModelConfig
    text: str
    files: Mapping[str, Path]
    extra: Mapping[str, Path]
    card: Card | None

    @property
    def path(self) -> Path:
        return self.root / self.config.name


def write(
    root: Path,
    config: ModelConfig,
    files: Mapping[str, Path],
    card: Card | None = None,
    version: int | None = None,
    extra: Mapping[str, Path] | None = None,
    *,
    disk: Disk | None = None,
    wait_seconds: float = 60.0,
) -> Entry:
    """Publish one version (the next number unless given) of `config.name`, all at once.

    `files` go into the version folder, `extra` (labels …) beside `config.pbtxt`; keys are posix relative names. The
    card's `model`, `version` and `files` are filled in here, where they are known. A version that is there already is
    never changed. Another publisher is waited for. `root` is made where it is missing. Raises RepositoryError and
    ConfigError; the old state is then whole, or the text says that the new one is in place.
    """
    publication = _check(root, config, files, card, extra or {})
    disk = disk or Disk()
    try:
        if not root.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            disk.flush_folder(root.parent)
        with staging.locked(root, wait_seconds), staging.staging(disk, root) as stage:
            _publish(disk, stage, publication, version)
            return read(root, config.name)
    except staging.Busy:
        raise RepositoryError(f"{root}: another publisher is at work, waited {wait_seconds:g} seconds") from None
    except OSError as error:
        text = error.strerror or str(error)
        raise RepositoryError(f"{publication.path}: cannot be published: {text}") from error


def _check(
    root: Path, config: ModelConfig, files: Mapping[str, Path], card: Card | None, extra: Mapping[str, Path]
) -> _Publication:
    check_name(config.name)
    text = config_text.dump(config)
    config_text.parse(text, f"{config.name}/{CONFIG_FILENAME}")
    for name, source in (*files.items(), *extra.items()):
        if problem := paths.relative_problem(name):
            raise RepositoryError(f"{config.name}: file name {name!r} {problem}")
        if not source.is_file():
            raise RepositoryError(f"{config.name}: {source} is no file, needed for '{name}'")
    if cards.FILENAME in files:
        raise RepositoryError(f"{config.name}: '{cards.FILENAME}' cannot be given as a file, it is the card")
    for name in extra:
        first = name.split("/")[0]
        if first == CONFIG_FILENAME or paths.version_number(first) is not None:
            raise RepositoryError(f"{config.name}: extra file '{name}' would lie in the place of {first}")
    present = {name.split("/")[0] for name in files}
    filename = platforms.model_filename(config, present)
    if filename.split("/")[0] not in present:
        raise RepositoryError(f"{config.name}: the model file '{filename}' is not among {sorted(files)}")
    return _Publication(root, config, text, files, extra, card)


def _publish(disk: Disk, stage: Path, publication: _Publication, version: int | None) -> None:
    path = publication.path
    there = path.exists()
    existing = _versions(path) if there else ()
    number = max(existing, default=0) + 1 if version is None else version
    if paths.version_number(str(number)) is None:
        raise RepositoryError(f"{publication.config.name}: version {number} is not in 1 … {paths.INT64_MAX}")
    if number in existing:
        raise RepositoryError(f"{publication.config.name}: version {number} is there already; versions never change")
    if there and _unchanged(publication):
        staged, target = stage / str(number), path / str(number)
        disk.mkdir(staged)
    else:
        staged, target = stage / "entry", path
        if there:
            replaced = [path / CONFIG_FILENAME, *(path / name for name in publication.extra)]
            staging.link_tree(disk, path, staged, replaced)
        else:
            disk.mkdir(staged)
        staging.put(disk, publication.text.encode(), staged / CONFIG_FILENAME)
        _copy_all(disk, publication.extra, staged)
        disk.mkdir(staged / str(number))
    _write_version(disk, publication, number, staged if staged.name == str(number) else staged / str(number))
    staging.flush_tree(disk, stage)
    _put_in_place(disk, staged, target)


def _write_version(disk: Disk, publication: _Publication, number: int, folder: Path) -> None:
    hashes = _copy_all(disk, publication.files, folder)
    if publication.card is not None:
        card = replace(publication.card, model=publication.config.name, version=number, files=hashes)
        staging.put(disk, cards.dumps(card).encode(), folder / cards.FILENAME)


def _copy_all(disk: Disk, files: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """SHA-256 of each, by name."""
    hashes = {}
    for name, source in files.items():
        staging.make_parents(disk, (folder / name).parent, folder)
        hashes[name] = staging.copy(disk, source, folder / name)
    return hashes


def _unchanged(publication: _Publication) -> bool:
    """Whether everything beside the version folders is already as it is to be; then only a version is added."""
    path = publication.path
    try:
        old = _config(path)
    except (ConfigError, RepositoryError):
        return False
    if old is None or config_text.dump(replace(old, name=publication.config.name)) != publication.text:
        return False
    return all(
        (path / name).is_file() and (path / name).read_bytes() == source.read_bytes()
        for name, source in publication.extra.items()
    )


def _put_in_place(disk: Disk, staged: Path, target: Path) -> None:
    """The one step that readers see, then its flush."""
    if target.exists():
        try:
            disk.exchange(staged, target)
        except OSError as error:
            if error.errno not in staging.SWAP_REFUSED:
                raise
            raise RepositoryError(
                f"{target}: its configuration cannot be changed in one step on this file system, which cannot swap two"
                " folders (renameat2 RENAME_EXCHANGE); publish under a new name, or remove the entry first"
            ) from None
    else:
        disk.rename(staged, target)
    try:
        disk.flush_folder(target.parent)
        disk.flush_folder(staged.parent)
    except OSError as error:
        text = error.strerror or str(error)
        raise RepositoryError(f"{target}: is published, but could not be flushed to the disk: {text}") from error
