"""Publishing is all or nothing: every operation on the disk is made to fail, and a reader looks."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from protos import card as cards
from protos import config_text, repository, staging
from protos.card import Card
from protos.model_config import ConfigError, ModelConfig
from protos.repository import Entry, RepositoryError
from protos.staging import Disk

CONFIG = ModelConfig("m", platform="onnxruntime_onnx", max_batch_size=4)
CARD = Card("", 0, "2026-01-01T00:00:00Z", (), (), {}, 10, 5, (), {}, {}, {}, {})
OPERATIONS = [name for name in vars(Disk) if not name.startswith("_")]


class Crash(BaseException):
    """The process is gone: nothing that follows is done."""


@dataclass
class Breaking(Disk):
    """Fails at operation number `at`; remembers all operations. Flushing is only remembered."""

    failure: str = ""
    at: int = -1
    log: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    at_rename: list[int] = field(default_factory=list)
    """Modes of the staging folder."""

    def step(self, name: str, arguments: tuple[Any, ...]) -> Any:
        number = len(self.log)
        self.log.append((name, arguments))
        due, later = number == self.at, number > self.at >= 0
        if (due and self.failure == "crash before") or (later and self.failure.startswith("crash")):
            raise Crash
        if (due and self.failure in errno.errorcode.values()) or ((due or later) and self.failure == "EIO for ever"):
            code = getattr(errno, self.failure.split()[0])
            raise OSError(code, os.strerror(code))
        if due and self.failure == "short write":
            arguments = (arguments[0], arguments[1][:1])
        result = self.perform(name, arguments)
        if due and self.failure == "crash after":
            raise Crash
        return result

    def perform(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in ("rename", "exchange"):
            self.at_rename.append(stat.S_IMODE(arguments[0].parent.stat().st_mode))
        if name in ("flush", "flush_folder"):
            return None
        return getattr(Disk, name)(self, *arguments)


def _operation(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: self.step(name, arguments)


for _name in OPERATIONS:
    setattr(Breaking, _name, _operation(_name))

State = tuple[str, dict[str, bytes]] | None


def state(root: Path) -> State:
    """What a reader sees, after checking that it is whole: configuration text and all files by relative name."""
    if "m" not in repository.names(root):
        return None
    entry = repository.read(root, "m")
    for version in entry.versions:
        repository.model_file(entry, version)
        found = cards.read(entry.version_path(version))
        assert found is not None
        assert (found.model, found.version) == ("m", version)
        cards.verify(found, entry.version_path(version))
    files = {p.relative_to(entry.path).as_posix(): p.read_bytes() for p in entry.path.rglob("*") if p.is_file()}
    return config_text.dump(entry.config), files


@dataclass(frozen=True)
class Publisher:
    """Writes versions of one entry whose content tells their number."""

    root: Path
    sources: Path

    def __call__(self, content: str, config: ModelConfig = CONFIG, disk: Disk | None = None, **more: Any) -> Entry:
        files = {"model.onnx": self.source(content * 1000), "data/weights.bin": self.source(content)}
        extra = {"labels.txt": self.source("labels")} | more.pop("extra", {})
        return repository.write(self.root, config, files, CARD, disk=disk, extra=extra, **more)

    def source(self, content: str) -> Path:
        path = self.sources / str(hash(content))
        path.write_text(content)
        return path


@pytest.fixture
def publish(tmp_path: Path) -> Publisher:
    (tmp_path / "sources").mkdir()
    return Publisher(tmp_path / "repository", tmp_path / "sources")


SCENARIOS: dict[str, tuple[int, ModelConfig]] = {
    "a new entry": (0, CONFIG),
    "a new version": (1, CONFIG),
    "a new version and another configuration": (2, replace(CONFIG, max_batch_size=8)),
}
FAILURES = ("crash before", "crash after", "EIO", "ENOSPC", "EINTR", "EIO for ever", "short write")


def prepared(publish: Publisher, scenario: str, name: str) -> tuple[Publisher, ModelConfig]:
    there, config = SCENARIOS[scenario]
    publish = Publisher(publish.root / name, publish.sources)
    publish.root.mkdir(parents=True)
    for number in range(there):
        publish(f"old {number}", disk=Breaking())
    return publish, config


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_operation_fails_a_reader_sees_the_old_state_or_the_new_one(
    publish: Publisher, scenario: str, failure: str
) -> None:
    clean, config = prepared(publish, scenario, "clean")
    shutil.copytree(clean.root, publish.root / "old")
    old, disk = state(clean.root), Breaking()
    clean("new", config, disk)
    new = state(clean.root)
    assert new not in (None, old)
    for at, (name, _) in enumerate(disk.log):
        if failure == "short write" and name != "write":
            continue
        broken = Publisher(publish.root / str(at), publish.sources)
        shutil.copytree(publish.root / "old", broken.root)
        outcome = attempt(broken, config, Breaking(failure, at))
        found = state(broken.root)
        expected = {"done": (new,), "in place": (new,), "refused": (old,), "crashed": (old, new)}[outcome]
        assert found in expected, f"operation {at}: {disk.log[at]}, {outcome}"
        broken("after", config, Breaking())
        assert list(broken.root.glob(f"{staging.PREFIX}*")) == [], "the next publish removes orphans"
        shutil.rmtree(broken.root)


def attempt(publish: Publisher, config: ModelConfig, disk: Disk) -> str:
    try:
        publish("new", config, disk)
    except Crash:
        return "crashed"
    except RepositoryError as error:
        return "in place" if "is published, but could not be flushed" in str(error) else "refused"
    return "done"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_files_are_flushed_before_folders_folders_before_the_rename_its_parent_after(
    publish: Publisher, scenario: str
) -> None:
    publish, config = prepared(publish, scenario, "repository")
    disk = Breaking()
    publish("new", config, disk)
    names = [name for name, _ in disk.log]
    (renamed,) = (i for i, name in enumerate(names) if name in ("rename", "exchange"))
    created = [arguments[0] for name, arguments in disk.log if name == "create"]
    assert names.count("flush") == len(created)
    flushed = {arguments[0]: i for i, (name, arguments) in enumerate(disk.log) if name == "flush_folder"}
    last_flush = max(i for i, name in enumerate(names) if name == "flush")
    staged = disk.log[renamed][1][0]
    inside = {path.parent for path in created} | {staged}
    for folder in inside:
        assert last_flush < flushed[folder] < renamed
        assert flushed[folder] <= flushed[staged], "folders inside first"
    assert flushed[disk.log[renamed][1][1].parent] > renamed


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_staged_is_private_and_what_is_published_is_not(publish: Publisher, scenario: str) -> None:
    umask = os.umask(0o022)
    try:
        publish, config = prepared(publish, scenario, "repository")
        disk = Breaking()
        publish("new", config, disk)
    finally:
        os.umask(umask)
    assert disk.at_rename == [0o700]
    for path in (publish.root / "m").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_a_changed_configuration_keeps_the_entrys_mode_its_versions_and_other_files(publish: Publisher) -> None:
    entry = publish("one").path
    entry.chmod(0o750)
    (entry / "warmup").mkdir()
    (entry / "warmup" / "x").write_text("x")
    inode = (entry / "1" / "model.onnx").stat().st_ino
    publish("two", replace(CONFIG, max_batch_size=8))
    assert stat.S_IMODE(entry.stat().st_mode) == 0o750
    assert (entry / "warmup" / "x").read_text() == "x"
    assert (entry / "1" / "model.onnx").stat().st_ino == inode, "old versions are not copied"
    assert repository.read(publish.root, "m").config.max_batch_size == 8


def test_versions_count_on_and_are_never_changed(publish: Publisher) -> None:
    assert publish("one").versions == (1,)
    assert publish("two", version=7).versions == (1, 7)
    assert publish("three").versions == (1, 7, 8)
    with pytest.raises(RepositoryError, match=r"^m: version 7 is there already; versions never change$"):
        publish("four", version=7)
    with pytest.raises(RepositoryError, match=r"^m: version 0 is not in 1"):
        publish("four", version=0)


def test_the_card_learns_model_version_and_hashes(publish: Publisher) -> None:
    entry = publish("one", version=3)
    found = cards.read(entry.version_path(3))
    assert found is not None
    assert (found.model, found.version, sorted(found.files)) == ("m", 3, ["data/weights.bin", "model.onnx"])
    cards.verify(found, entry.version_path(3))


def test_an_entry_needs_no_card(publish: Publisher) -> None:
    entry = repository.write(publish.root, CONFIG, {"model.onnx": publish.source("x")})
    assert cards.read(entry.version_path(1)) is None


def test_an_entry_whose_configuration_is_broken_or_missing_is_put_right(publish: Publisher) -> None:
    config = publish("one").path / "config.pbtxt"
    config.write_text("nonsense")
    assert publish("two").versions == (1, 2)
    config.unlink()
    assert publish("three").versions == (1, 2, 3)
    assert repository.read(publish.root, "m").config.max_batch_size == 4


def test_a_file_system_that_cannot_swap_folders_is_told_and_nothing_changes(publish: Publisher) -> None:
    class NoSwap(Disk):
        def exchange(self, one: Path, other: Path) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    publish("one")
    before = state(publish.root)
    with pytest.raises(RepositoryError, match="its configuration cannot be changed in one step on this file system"):
        publish("two", replace(CONFIG, max_batch_size=8), NoSwap())
    assert state(publish.root) == before
    assert publish("two", disk=NoSwap()).versions == (1, 2), "a version alone needs no swap"


def test_a_file_system_without_hard_links_gets_copies(publish: Publisher) -> None:
    class NoLinks(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    publish("one")
    assert publish("two", replace(CONFIG, max_batch_size=8), NoLinks()).versions == (1, 2)
    assert state(publish.root) is not None


def test_a_second_publisher_is_told_that_the_first_is_at_work(publish: Publisher) -> None:
    publish.root.mkdir()
    with staging.locked(publish.root, 0), pytest.raises(RepositoryError, match="another publisher is at work"):
        publish("one", wait_seconds=0)
    publish("one", wait_seconds=0)


def test_of_two_publishers_of_one_version_exactly_one_wins(publish: Publisher) -> None:
    together = threading.Barrier(4)

    def write(number: int) -> str:
        together.wait()
        try:
            publish(f"content {number}", version=1)
        except RepositoryError as error:
            return str(error)
        return "won"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(write, range(4)))
    assert outcomes == ["m: version 1 is there already; versions never change"] * 3 + ["won"]
    assert state(publish.root) is not None


def test_a_reader_never_sees_a_configuration_with_the_versions_of_another(publish: Publisher) -> None:
    publish("0", replace(CONFIG, max_batch_size=1))
    done = threading.Event()

    def read() -> set[tuple[int, int]]:
        seen = set()
        while not done.is_set():
            entry = repository.read(publish.root, "m")
            seen.add((entry.config.max_batch_size, len(entry.versions)))
        return seen

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(read)
        for number in range(2, 16):
            publish(str(number), replace(CONFIG, max_batch_size=number), Breaking())
        done.set()
    assert all(batch == versions for batch, versions in seen.result())


@pytest.mark.slow
def test_a_publisher_killed_at_any_moment_leaves_whole_versions(publish: Publisher) -> None:
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.protos.test_publishing import *
publish = Publisher(pathlib.Path({str(publish.root)!r}), pathlib.Path({str(publish.sources)!r}))
number = 0
while True:
    number += 1
    publish("x" * number, replace(CONFIG, max_batch_size=1 + number % 5))
    print(number, flush=True)
"""
    for round_number in range(4):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(1 + round_number):
            assert child.stdout.readline()
        child.kill()
        child.stdout.close()
        child.wait()
        assert state(publish.root) is not None
    publish("after")
    assert [p.name for p in publish.root.iterdir() if p.name.startswith(staging.PREFIX)] == []


@pytest.mark.parametrize("name", ["../m", "/etc/m", ".m", "a//b", "a/../b", "a\nb"])
def test_names_of_files_stay_in_the_entry(publish: Publisher, name: str) -> None:
    source = publish.source("x")
    with pytest.raises(RepositoryError, match=r"^m: file name "):
        repository.write(publish.root, CONFIG, {"model.onnx": source, name: source})
    with pytest.raises(RepositoryError, match=r"^m: file name "):
        repository.write(publish.root, CONFIG, {"model.onnx": source}, extra={name: source})
    assert not publish.root.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"files": {"other.onnx": "x"}}, r"^m: the model file 'model.onnx' is not among \['other.onnx'\]"),
        ({"files": {"model.onnx": None}}, "is no file, needed for 'model.onnx'"),
        ({"files": {"model.onnx": "x", "card.json": "x"}}, "'card.json' cannot be given as a file, it is the card"),
        ({"extra": {"config.pbtxt": "x"}}, "extra file 'config.pbtxt' would lie in the place of config.pbtxt"),
        ({"extra": {"2/model.onnx": "x"}}, "extra file '2/model.onnx' would lie in the place of 2"),
        ({"config": replace(CONFIG, name="../m")}, "^entry name '../m' begins with a dot"),
        ({"config": replace(CONFIG, name="")}, "^entry name '' is empty"),
    ],
)
def test_what_cannot_become_an_entry_is_refused_and_nothing_is_written(
    publish: Publisher, change: dict[str, Any], expected: str
) -> None:
    def sources(files: dict[str, str | None]) -> dict[str, Path]:
        return {name: publish.sources / "none" if c is None else publish.source(c) for name, c in files.items()}

    files = sources(change.get("files", {"model.onnx": "x"}))
    with pytest.raises(RepositoryError, match=expected):
        repository.write(publish.root, change.get("config", CONFIG), files, extra=sources(change.get("extra", {})))
    assert not publish.root.exists()


def test_a_configuration_that_no_reader_would_take_is_refused(publish: Publisher) -> None:
    with pytest.raises(ConfigError, match=r"^m/config.pbtxt: max_batch_size: -3 is not in"):
        publish("one", replace(CONFIG, max_batch_size=-3))
    with pytest.raises(ConfigError, match="max_batch_size cannot hold"):
        publish("one", replace(CONFIG, max_batch_size=2**40))
    assert not publish.root.exists()


def test_a_name_that_a_file_has_taken_is_refused(publish: Publisher) -> None:
    publish.root.mkdir()
    (publish.root / "m").write_text("")
    with pytest.raises(RepositoryError, match=r"/m: cannot be published: Not a directory$"):
        publish("one")
