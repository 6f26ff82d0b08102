"""All models the server knows, by name and version, with their states; loads, reloads and unloads them.

Looking a model up takes no lock: `_serving` is replaced as a whole and never changed. A reload serves the old versions
until all new ones are ready, and on serving the old when one of them fails (as Triton: core's model_lifecycle.cc).
What loading one version means is the loader's business (`loading.py`); nothing here blocks a caller but `start`,
`load`, `unload`, `poll` and `stop`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from protos.card import CardError
from protos.model_config import ConfigError
from protos.repository import Entry, RepositoryError
from server.backends.base import BackendError
from server.entries import Entries, Fingerprint
from server.errors import InvalidRequest, NotFound, ServerError, Unavailable
from server.logs import log
from server.model import Model
from server.states import UNLOADED, Row, State, Status

MAX_VERSION = (1 << 63) - 1
STOPPING = "Server is stopping"
CLOSE_SECS = 0.5
"""What a stopping server waits for models to give back their memory, on top of its timeout."""
NOT_ALLOWED = "explicit model load / unload is not allowed if polling is enabled"


class Loader(Protocol):
    """Makes a version of an entry ready to serve; raises BackendError, CardError, ConfigError or RepositoryError."""

    def __call__(self, entry: Entry, version: int) -> Model: ...


@dataclass(slots=True)
class _Known:
    """What the catalog holds of one name. Owner: whoever holds `gate`; `Catalog._lock` guards each change."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    """One load or unload of a name at a time."""
    versions: dict[int, Status] = field(default_factory=dict)
    trouble: str = ""
    """Why the entry itself could not be read; such a name has no version to say it of."""
    seen: Mapping[str, Fingerprint] = field(default_factory=dict)
    """The folder at the last load, good or bad: polling loads again only what changed since."""
    loaded: dict[int, tuple[Fingerprint, ...]] = field(default_factory=dict)
    """What each serving version was loaded from; polling keeps a version that did not change."""


@lru_cache(maxsize=1024)  # 0.1 µs, not 0.6, for each request that names its version; texts that raise are not kept
def parse_version(text: str) -> int:
    """A version as clients write it; 0 for the empty text, which means the latest. Raises InvalidRequest."""
    if not text:
        return 0
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 19 or int(digits) > MAX_VERSION:
        raise InvalidRequest(
            f"failed to get model version from specified version string '{text[:64]}' (details: stoll), version should "
            "be an integral value > 0"
        )
    if int(text) <= 0:
        raise InvalidRequest(f"invalid model version specified '{text}' , version should be an integral value > 0")
    return int(text)


class Catalog:
    """Keeps the models of one or more repositories. `changed` is called, from any thread, after each change."""

    def __init__(
        self,
        roots: Iterable[Path],
        loader: Loader,
        *,
        mode: str = "none",
        strict: bool = True,
        threads: int = 4,
        drain_secs: float = 30,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._entries = Entries(roots)
        self._loader = loader
        self._mode = mode
        self._strict = strict
        self._drain_secs = drain_secs
        self.changed = changed
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._serving: Mapping[str, Mapping[int, Model]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
        self._retiring: set[threading.Thread] = set()
        self._started = False
        self._stopping = False

    # --- looking up, from any thread, without waiting ---

    def model(self, name: str, version: str = "") -> Model:
        """The version asked for, or the latest ready one. Raises InvalidRequest, NotFound or Unavailable."""
        number = parse_version(version)
        serving = self._serving.get(name)
        if serving:
            found = serving.get(number) if number else serving[max(serving)]
            if found is not None:
                return found
        known = self._known.get(name)
        if known is None or not known.versions:
            raise NotFound(f"Request for unknown model: '{name}' is not found")
        if not number:
            raise NotFound(f"Request for unknown model: '{name}' has no available versions")
        if number not in known.versions:
            raise NotFound(f"Request for unknown model: '{name}' version {number} is not found")
        raise Unavailable(f"Request for unknown model: '{name}' version {number} is not at ready state")

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether `model` would find it. Raises InvalidRequest for a malformed version."""
        number = parse_version(version)
        serving = self._serving.get(name, {})
        return not self._stopping and (number in serving if number else bool(serving))

    def versions(self, name: str) -> tuple[int, ...]:
        """Versions of a name that serve, ascending."""
        return tuple(sorted(self._serving.get(name, {})))

    def models(self) -> tuple[Model, ...]:
        """All that serve, by name and version."""
        serving = self._serving
        return tuple(serving[name][version] for name in sorted(serving) for version in sorted(serving[name]))

    @property
    def ready(self) -> bool:
        """Not stopping and, where readiness is strict, with every model that should be there."""
        if self._stopping or not self._strict:
            return not self._stopping
        with self._lock:
            return self._started and all(
                bool(known.versions or not known.trouble) and all(s.counts_as_ready for s in known.versions.values())
                for known in self._known.values()
            )

    def index(self, ready_only: bool = False) -> tuple[Row, ...]:
        """A row per version, sorted. Reads the repositories' folders."""
        rows: list[Row] = []
        with self._lock:
            for name, known in self._known.items():
                if known.trouble and not known.versions:
                    rows.append(Row(name, "", State.UNAVAILABLE.value, known.trouble))
                for version, status in known.versions.items():
                    rows.append(Row(name, str(version), status.state.value, status.reason or known.trouble))
        listed = {row.name for row in rows}
        rows += [Row(name) for name in self._entries.names() if name not in listed]
        if ready_only:
            rows = [row for row in rows if row.state == State.READY.value]
        return tuple(sorted(rows, key=lambda row: (row.name, int(row.version or 0))))

    # --- changing, in threads that may wait ---

    def start(self, names: Iterable[str] = ()) -> dict[str, str]:
        """Load `names` (all entries unless the mode is explicit); returns the failed ones with their reasons."""
        names = tuple(dict.fromkeys(names))
        wanted = self._entries.names() if self._mode != "explicit" or names == ("*",) else names
        failed = self._load_all(wanted)
        self._started = True
        self.changed()
        return failed

    def load(self, name: str, config: str | None = None) -> None:
        """Load or reload an entry, with its configuration replaced by the JSON text `config` if given.

        Raises InvalidRequest, NotFound or Unavailable; the old versions then serve on.
        """
        self._check_explicit(name)
        try:
            job = self._pool.submit(self._load, name, config)
        except RuntimeError:  # the pool is shut down
            raise Unavailable(STOPPING) from None
        job.result()

    def unload(self, name: str) -> None:
        """Stop serving a name: accepted requests finish, new ones are refused at once. Unknown names are fine."""
        self._check_explicit(name)
        if name in self._known:
            self._unload(name)

    def poll(self) -> dict[str, str]:
        """One look at the repositories: load what is new or changed, unload what is gone; returns the failed ones."""
        listed = self._entries.names()
        for name in [name for name in self._known if name not in listed]:
            log.info("entry is gone", model=name)
            self._unload(name)
            with self._lock:
                del self._known[name]
        changed = [n for n in listed if n not in self._known or self._known[n].seen != self._entries.fingerprints(n)]
        return self._load_all(changed, keep=True)

    def stop(self, timeout: float = 0) -> None:
        """Drain and close all models; `timeout` seconds for all of them together."""
        self._stopping = True
        self.changed()
        self._pool.shutdown(wait=False, cancel_futures=True)
        models, self._serving = self.models(), {}
        self._retire(models, timeout)
        for thread in tuple(self._retiring):
            thread.join(timeout + CLOSE_SECS)

    @property
    def loading(self) -> bool:
        """Whether a load is under way; one that hangs must not keep a stopped server from ending."""
        return any(known.gate.locked() for known in tuple(self._known.values()))

    # --- inside ---

    def _check_explicit(self, name: str) -> None:
        if self._stopping:
            raise Unavailable(STOPPING)
        if self._mode != "explicit":
            raise Unavailable(NOT_ALLOWED)
        self._entries.check_name(name)

    def _load_all(self, names: Iterable[str], keep: bool = False) -> dict[str, str]:
        """Load in parallel; `keep`: a version whose files did not change need not be loaded again."""
        jobs: dict[str, Future[None]] = {name: self._pool.submit(self._load, name, None, keep) for name in names}
        failed: dict[str, str] = {}
        for name, job in jobs.items():
            try:
                job.result()
            except ServerError as error:
                failed[name] = str(error)
        return failed

    def _load(self, name: str, config: str | None = None, keep: bool = False) -> None:
        with self._lock:
            known = self._known.setdefault(name, _Known())
        with known.gate:
            known.seen = self._entries.fingerprints(name)
            try:
                entry, wanted = self._entries.read(name, config)
            except ServerError as error:
                self._note(known, trouble=str(error))
                if isinstance(error, NotFound) and not known.versions:
                    with self._lock:
                        self._known.pop(name, None)
                raise
            sources = {v: (known.seen[""], known.seen.get(str(v), ())) for v in wanted}
            old = self._serving.get(name, {})
            kept = {v: old[v] for v in wanted if keep and v in old and known.loaded.get(v) == sources[v]}
            self._replace(entry, wanted, known, kept)
            known.loaded = {} if config is not None else dict(sources)

    def _replace(self, entry: Entry, wanted: tuple[int, ...], known: _Known, kept: Mapping[int, Model]) -> None:
        """Load `wanted`, then swap it for what serves. Raises InvalidRequest, with the old still serving."""
        name = entry.name
        old = self._serving.get(name, {})
        new: dict[int, Model] = dict(kept)
        failed: dict[int, str] = {}
        self._note(known, {v: (State.LOADING, "") for v in wanted if v not in old}, trouble="")
        for version in (v for v in wanted if v not in kept):
            try:
                new[version] = self._loader(entry, version)
            except (BackendError, CardError, ConfigError, RepositoryError, OSError, ServerError) as error:
                log.error("load failed", model=name, version=version, reason=error)
                failed[version] = self._entries.public(error)
            except Exception as error:  # noqa: BLE001 whatever a model file sets off, the others must load
                log.defect("load failed", error, model=name, version=version)
                failed[version] = f"unexpected {type(error).__name__} while loading, see the server's log"
        if failed or self._stopping:
            self._retire((m for v, m in new.items() if v not in kept), 0)
            aborted = "load aborted: another version failed" if failed else "server is stopping"
            self._note(known, {
                v: (State.READY if v in old else State.UNAVAILABLE, failed.get(v, aborted)) for v in wanted
            })  # fmt: skip
            reasons = "".join(f"version {v} is at UNAVAILABLE state: {why};" for v, why in failed.items())
            raise InvalidRequest(f"load failed for model '{name}': {reasons or aborted}")
        with self._lock:
            self._serving = {**self._serving, name: new}
        gone = {v: model for v, model in old.items() if v not in new}
        self._note(known, dict.fromkeys(new, (State.READY, "")) | dict.fromkeys(gone, (State.UNLOADING, UNLOADED)))
        replaced = tuple(model for model in old.values() if model not in new.values())
        self._retire(replaced, self._drain_secs, lambda: self._gone(known, gone))

    def _unload(self, name: str) -> None:
        known = self._known[name]
        with known.gate:
            with self._lock:
                old = self._serving.get(name, {})
                self._serving = {n: models for n, models in self._serving.items() if n != name}
            self._note(known, dict.fromkeys(old, (State.UNLOADING, UNLOADED)))
            # a version that never got ready has nothing to drain
            never = [v for v, status in known.versions.items() if status.state is State.UNAVAILABLE]
            self._note(known, dict.fromkeys(never, (State.UNAVAILABLE, UNLOADED)), trouble="")
            self._retire(old.values(), self._drain_secs, lambda: self._gone(known, old))
        log.info("unloaded", model=name)

    def _note(
        self, known: _Known, moves: Mapping[int, tuple[State, str]] | None = None, trouble: str | None = None
    ) -> None:
        with self._lock:
            known.trouble = known.trouble if trouble is None else trouble
            for version, move in (moves or {}).items():
                known.versions[version] = known.versions.get(version, Status()).to(*move)
        self.changed()

    def _gone(self, known: _Known, versions: Iterable[int]) -> None:
        """The last request of these versions has been answered; one that was loaded again meanwhile stays."""
        with self._lock:
            for version in versions:
                if known.versions[version].state is State.UNLOADING:
                    known.versions[version] = known.versions[version].to(State.UNAVAILABLE, UNLOADED)
        self.changed()

    def _retire(self, models: Iterable[Model], timeout: float, then: Callable[[], None] = lambda: None) -> None:
        """Let accepted requests finish, then give back the memory; in a thread, since it may take long."""
        models = tuple(models)
        if not models:
            return

        def work() -> None:
            for model in models:
                if not model.drain(timeout):
                    log.warning("requests cut off", model=model.name, version=model.version, pending=model.pending())
                model.close()
            then()
            self._retiring.discard(thread)

        thread = threading.Thread(target=work, name="retire", daemon=True)
        self._retiring.add(thread)
        thread.start()
