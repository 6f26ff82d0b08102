"""Putting folders in place so that nobody sees half of one: staging, flushing, renaming. Knows nothing of entries.

A writer holds the lock, builds below a staging folder (`.staging-…`, readable by its owner only) on the same file
system, flushes every file and then every folder, and renames. Whoever finds a staging folder while holding the lock
looks at the remains of a writer that died.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".staging-"
LOCK = ".publish.lock"
CHUNK = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
POLL_SECONDS = 0.05
LINK_REFUSED = frozenset({errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EXDEV})
"""By file systems without hard links, and by kernels that protect files of other owners."""
SWAP_REFUSED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
"""By file systems and kernels without RENAME_EXCHANGE."""


class Busy(Exception):
    """Another writer holds the lock."""


class Disk:
    """Every operation by which publishing changes a disk, one method each, so that a test can make any of them fail.

    All raise OSError.
    """

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        path.mkdir(mode=mode)

    def create(self, path: Path) -> int:
        """Descriptor of a new file, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Bytes written, which may be fewer than given."""
        return os.write(descriptor, data)

    def flush(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def flush_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target, follow_symlinks=False)

    def chmod(self, path: Path, mode: int) -> None:
        path.chmod(mode)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def exchange(self, one: Path, other: Path) -> None:
        """Swap two names in one step (renameat2, Linux ≥ 3.15)."""
        function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if function is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rmdir(self, path: Path) -> None:
        path.rmdir()


@contextmanager
def locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the folder's lock file, which ends with the process that holds it and is never removed. Raises Busy."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy from None
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging(disk: Disk, root: Path) -> Iterator[Path]:
    """A new folder to build in; it and all remains of earlier ones are gone afterwards. The lock must be held."""
    for remains in sorted(root.glob(f"{PREFIX}*")):
        remove(disk, remains)
    folder = root / f"{PREFIX}{os.getpid()}"
    disk.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        # what cannot be removed now is an orphan, removed by the next writer
        with suppress(OSError):
            remove(disk, folder)


def remove(disk: Disk, path: Path) -> None:
    """Remove a folder with all that is in it, or a file; links are removed, not followed."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        disk.unlink(path)
        return
    for child in sorted(path.iterdir()):
        remove(disk, child)
    disk.rmdir(path)


def put(disk: Disk, data: bytes, target: Path) -> None:
    """A new, flushed file holding `data`."""
    with _new(disk, target) as descriptor:
        _write(disk, descriptor, data)


def copy(disk: Disk, source: Path, target: Path) -> str:
    """A new, flushed copy of a file; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with source.open("rb") as file, _new(disk, target) as descriptor:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            _write(disk, descriptor, chunk)
    return digest.hexdigest()


def link_tree(disk: Disk, source: Path, target: Path, skip: Collection[Path] = ()) -> None:
    """Make `target` hold what `source` holds, files shared by hard links, or copied where links are refused.

    Paths in `skip` and names that begin with a dot are left behind.
    """
    disk.mkdir(target)
    for child in sorted(source.iterdir()):
        if child.name.startswith(".") or child in skip:
            continue
        if stat.S_ISDIR(child.lstat().st_mode):
            link_tree(disk, child, target / child.name, skip)
            continue
        try:
            disk.link(child, target / child.name)
        except OSError as error:
            if error.errno not in LINK_REFUSED or not child.is_file():
                raise
            copy(disk, child, target / child.name)
    disk.chmod(target, stat.S_IMODE(source.stat().st_mode))


def make_parents(disk: Disk, folder: Path, below: Path) -> None:
    """Make `folder` and what is missing between it and `below`."""
    if folder == below or folder.is_dir():
        return
    make_parents(disk, folder.parent, below)
    disk.mkdir(folder)


def flush_tree(disk: Disk, folder: Path) -> None:
    """Flush a folder after the folders in it; the files were flushed when they were written."""
    for child in sorted(folder.iterdir()):
        if stat.S_ISDIR(child.lstat().st_mode):
            flush_tree(disk, child)
    disk.flush_folder(folder)


@contextmanager
def _new(disk: Disk, target: Path) -> Iterator[int]:
    descriptor = disk.create(target)
    try:
        yield descriptor
        disk.flush(descriptor)
    finally:
        os.close(descriptor)


def _write(disk: Disk, descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(descriptor, rest) :]
