"""The server's life: start in order, say what is loaded, serve, drain, end.

gRPC listens before models load, so that liveness can be asked meanwhile; readiness says when they are there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TextIO

from rich.console import Console
from rich.table import Table

from server import memory
from server.catalog import Catalog
from server.errors import ServerError
from server.loading import EntryLoader
from server.logs import log
from server.metrics import MetricsServer
from server.model import Model
from server.rpc import transport
from server.rpc.service import Service
from server.settings import Settings
from server.states import Row, State

FAILED_TO_LOAD = 1
STOPPED_AT_ONCE = 1
CUT_OFF = 1
WRONG_START = 2
"""Exit statuses; a wrong command line is 2 as well (`settings.py`)."""


class Server:
    """Everything that one process serves with. Owner of all its parts; `start` and `stop` are called once."""

    def __init__(self, settings: Settings, out: TextIO | None = None, clock: Callable[[], int] = time.monotonic_ns):
        self._settings = settings
        self._out = out or sys.stdout
        self.catalog = Catalog(
            settings.repositories,
            EntryLoader(settings, clock),
            mode=settings.model_control_mode,
            strict=settings.strict_readiness,
            threads=settings.model_load_thread_count,
            drain_secs=settings.exit_timeout_secs,
        )
        self._service = Service(self.catalog, settings.id, clock)
        self._grpc = transport.make(self._service, clock, settings.grpc)
        self._metrics = MetricsServer(self.catalog.models)
        self._ended = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
        self.grpc_port = self.metrics_port = 0

    def start(self) -> Mapping[str, str]:
        """Listen, then load; returns the entries that did not load, with reasons. Raises OSError for a port."""
        settings = self._settings
        grpc = settings.grpc
        if grpc.allowed:
            self.grpc_port = self._grpc.start(grpc.address, grpc.port)
            self.catalog.changed = self._service.health.refresh
            self._say(f"gRPC listening on {grpc.address}" + (f":{self.grpc_port}" if self.grpc_port else ""))
        if settings.allow_metrics:
            self.metrics_port = self._metrics.start(settings.metrics_address, settings.metrics_port)
            self._say(f"metrics listening on {settings.metrics_address}:{self.metrics_port}")
        failed = self.catalog.start(settings.load_models)
        if settings.model_control_mode == "poll":
            self._poller.start()
        return failed

    def show(self, failed: Mapping[str, str]) -> None:
        """What is served, as a table, and the line that says so."""
        rows = self.catalog.index()
        models = {(model.name, str(model.version)): model for model in self.catalog.models()}
        _table(self._out, [(row, models.get((row.name, row.version))) for row in rows if row.state])
        for reason in failed.values():
            self._say(f"not loaded: {reason}")
        self._say(f"ready: {len(models)} model versions, {len(failed)} entries not loaded")
        log.info("ready", models=len(models), failed=len(failed))

    def stop(self) -> bool:
        """Refuse new requests, finish the accepted ones; False if the exit timeout cut some off."""
        self._ended.set()
        left = self._settings.exit_timeout_secs
        began = time.monotonic()
        log.info("draining", timeout=left)
        drained = True
        if self._settings.grpc.allowed:
            drained = self._grpc.drain(left)
            # the listener goes first: what arrives from here on is refused by the transport
            self._grpc.stop(grace=1.0 if drained else 0)
        if self.metrics_port:
            self._metrics.stop()
        answered = sum(model.statistics().success.count for model in self.catalog.models())
        self.catalog.stop(max(0.0, left - (time.monotonic() - began)) if drained else 0)
        log.info("stopped", drained=drained, answered=answered)
        return drained

    def _poll(self) -> None:
        while not self._ended.wait(self._settings.repository_poll_secs):
            try:
                self.catalog.poll()
            except (OSError, ServerError) as error:  # a folder that is away for a while must not end the polling
                log.warning("polling failed", reason=error)

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends at once. Returns the exit status."""
    memory.keep_freed()
    asked = threading.Event()
    woken = threading.Event()  # asked to end, or started

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(STOPPED_AT_ONCE)
        asked.set()
        woken.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    server = Server(settings)
    began = _Begin(server, woken)
    began.start()
    woken.wait()
    if not asked.is_set():
        if began.error is not None:
            print(f"demiglace serve: {began.error}", file=sys.stderr)
            return WRONG_START
        if began.failed and settings.exit_on_error:
            for reason in began.failed.values():
                print(f"demiglace serve: {reason}", file=sys.stderr)
            print("demiglace serve: ending; --exit-on-error false would serve the other models", file=sys.stderr)
            server.stop()
            return FAILED_TO_LOAD
        server.show(began.failed)
        memory.freeze()
        asked.wait()
    status = 0 if server.stop() else CUT_OFF
    if server.catalog.loading:
        log.warning("a load is still under way and is left behind")
        sys.stdout.flush()
        os._exit(status)  # the interpreter would wait for the load's thread
    return status


class _Begin(threading.Thread):
    """Starts the server beside the main thread, which must be free for signals while models load."""

    def __init__(self, server: Server, woken: threading.Event) -> None:
        super().__init__(name="start", daemon=True)
        self._server = server
        self._woken = woken
        self.failed: Mapping[str, str] = {}
        self.error: OSError | ServerError | None = None

    def run(self) -> None:
        try:
            self.failed = self._server.start()
        except (OSError, ServerError) as error:
            self.error = error
        finally:
            self._woken.set()


_COLUMNS = ("model", "version", "state", "device", "instances × threads", "batch")


def _table(out: TextIO, rows: list[tuple[Row, Model | None]]) -> None:
    """With a terminal a drawn table, else a plain line per version."""
    cells = [_cells(row, model) for row, model in rows]
    if not out.isatty():
        for line in cells:
            print("  ".join(f"{name}={cell}" for name, cell in zip(_COLUMNS, line, strict=True)), file=out)
        return
    table = Table(*_COLUMNS)
    for line in cells:
        table.add_row(*line, style="" if line[2] == State.READY.value else "red")
    Console(file=out).print(table)


def _cells(row: Row, model: Model | None) -> tuple[str, ...]:
    if model is None:
        return (row.name, row.version or "-", row.state, "-", "-", "-")
    devices = ", ".join(dict.fromkeys(str(device) for device in model.instances))
    config = model.config
    batch = f"1-{config.max_batch_size}" if config.max_batch_size > 0 else "no"
    preferred = config.dynamic_batching.preferred_batch_size if config.dynamic_batching else ()
    if preferred:
        batch += f" (preferred {', '.join(map(str, preferred))})"
    return (row.name, row.version, row.state, devices, f"{len(model.instances)} × {model.threads or '-'}", batch)
