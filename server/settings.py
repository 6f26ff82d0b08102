"""The command line of the server, read once into a frozen `Settings`; nothing else reads argv or the environment.

Flags carry Triton's names where they mean the same (server/src/command_line_parser.cc). Only the standard library is
imported here, so that a wrong flag, a missing folder or a taken port is said at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from server import grpc_settings
from server.flags import INT32_MAX, SettingsError, truth_flag, whole, whole_flag
from server.grpc_settings import GrpcSettings

LOG_FORMATS = ("default", "ISO8601", "json")
CONTROL_MODES = ("none", "poll", "explicit")


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the user decided at the start."""

    repositories: tuple[Path, ...]
    id: str = "triton"
    """Name in ServerMetadata; Triton's own default, because clients compare it."""
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    http_address: str = "127.0.0.1"
    http_port: int = 8000
    allow_metrics: bool = True
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 8002
    model_control_mode: str = "none"
    repository_poll_secs: int = 15
    load_models: tuple[str, ...] = ()
    strict_readiness: bool = True
    exit_on_error: bool = True
    exit_timeout_secs: int = 30
    auto_complete_config: bool = True
    model_load_thread_count: int = 4
    max_queue_size: int = 4096
    backend_config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Backend name to its keys; the name is empty for settings of all backends."""
    log_verbose: int = 0
    log_format: str = "default"
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True

    def backend_options(self, backend: str) -> Mapping[str, str]:
        """What `--backend-config` says to one backend; its own values win over those for all."""
        return {**self.backend_config.get("", {}), **self.backend_config.get(backend, {})}

    def default_max_batch_size(self, backend: str) -> int:
        """For a model whose configuration leaves the batch size open (Triton: 4)."""
        return int(self.backend_options(backend).get("default-max-batch-size", "4"))


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line without the usage text in front of it."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (--help lists all flags)")


def _backend_config(text: str) -> tuple[str, str, str]:
    """`<backend>,<key>=<value>`, or `<key>=<value>` for all backends."""
    head, equals, value = text.partition("=")
    backend, comma, key = head.partition(",")
    if not comma:
        backend, key = "", head
    if not equals or not key or (comma and not backend):
        raise argparse.ArgumentTypeError(
            f"--backend-config is {text!r}, allowed is <backend>,<key>=<value> or <key>=<value>"
        )
    if key == "default-max-batch-size":
        whole(f"--backend-config={head}", 0, INT32_MAX)(value)
    return backend, key, value


def _models(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model-repository",
        "--model-store",
        action="append",
        type=Path,
        metavar="DIR",
        default=None,
        help="folder with model entries; may be given several times; required",
    )
    models.add_argument(
        "--model-control-mode",
        choices=CONTROL_MODES,
        default="none",
        metavar="|".join(CONTROL_MODES),
        help="none: load all at start, then leave the folder alone (default)\n"
        "poll: look for changes regularly; a copy in progress may be seen half done,\n"
        "      unless entries are renamed into place, as `demiglace compress` does\n"
        "explicit: load what --load-model names, then what clients ask for;\n"
        "      whoever reaches the port can load and unload",
    )
    models.add_argument(
        "--load-model",
        action="append",
        default=[],
        metavar="NAME",
        help="with explicit: load this entry at start; several times, or once as '*' for all",
    )
    whole_flag(
        models, "--repository-poll-secs", 15, 1, 86400, "with poll: seconds between looks; each look stats all files"
    )
    truth_flag(
        models, "--disable-auto-complete-config", False, "take config.pbtxt as it is and refuse what is incomplete"
    )
    whole_flag(
        models,
        "--model-load-thread-count",
        4,
        1,
        256,
        "entries loaded at once; each may need its model's memory twice while loading",
    )
    models.add_argument(
        "--backend-config",
        action="append",
        type=_backend_config,
        default=[],
        metavar="BACKEND,KEY=VALUE",
        help="setting of a backend, or of all without BACKEND; default-max-batch-size=N is what a\n"
        "model that can batch gets when its config does not say (default 4)",
    )
    whole_flag(
        models,
        "--max-queue-size",
        4096,
        1,
        INT32_MAX,
        "waiting requests per model version where its config sets no limit; more are refused with\n"
        "UNAVAILABLE; each waiting request holds its bytes in memory",
    )


def _listeners(parser: argparse.ArgumentParser) -> None:
    ports = parser.add_argument_group("other listeners (loopback unless told otherwise: there is no access control)")
    truth_flag(ports, "--allow-metrics", True, "listen for Prometheus")
    ports.add_argument(
        "--metrics-address",
        default="127.0.0.1",
        metavar="ADDR",
        help="address for metrics; they show names and load of all models (default 127.0.0.1)",
    )
    whole_flag(ports, "--metrics-port", 8002, 0, 65535, "port for metrics; 0 picks a free one and prints it")
    truth_flag(ports, "--allow-http", False, "the REST face is not there yet: only false is possible")
    ports.add_argument("--http-address", default="127.0.0.1", metavar="ADDR", help="kept for the REST face; unused")
    whole_flag(ports, "--http-port", 8000, 0, 65535, "kept for the REST face; nothing listens there")


def _lifecycle(parser: argparse.ArgumentParser) -> None:
    life = parser.add_argument_group("lifecycle")
    life.add_argument("--id", default="triton", metavar="NAME", help="name in the server metadata (default triton)")
    truth_flag(
        life,
        "--strict-readiness",
        True,
        "not ready while any model that should be there is not; false: ready as soon as it listens",
    )
    truth_flag(life, "--exit-on-error", True, "end when a model does not load at start; false: serve the others")
    whole_flag(
        life,
        "--exit-timeout-secs",
        30,
        0,
        86400,
        "on SIGTERM wait so long for accepted requests; later ones are cut off",
    )


def _log(parser: argparse.ArgumentParser) -> None:
    logs = parser.add_argument_group("log (standard error; one event is one line)")
    whole_flag(logs, "--log-verbose", 0, 0, 4, "1 and more log every failed request: a client can fill the disk")
    logs.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="default",
        metavar="|".join(LOG_FORMATS),
        help="default: as Triton's; ISO8601: the same with full dates; json: an object per line",
    )
    truth_flag(logs, "--log-info", True, "log what happens")
    truth_flag(logs, "--log-warning", True, "log what is odd")
    truth_flag(logs, "--log-error", True, "log what failed")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="demiglace serve",
        description="Serve a model repository over the Triton / KServe v2 gRPC protocol.",
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    for add in (_models, grpc_settings.add_flags, _listeners, _lifecycle, _log):
        add(parser)
    return parser


def parse(argv: Sequence[str]) -> Settings:
    """Raises SettingsError; `--help` prints and exits as usual."""
    given = _parser().parse_args(argv)
    if given.allow_http:
        raise SettingsError("--allow-http true: the REST face is not there yet, only gRPC is (--allow-grpc)")
    if not given.model_repository:
        raise SettingsError("--model-repository is missing: name the folder with the model entries")
    if given.load_model and given.model_control_mode != "explicit":
        raise SettingsError(f"--load-model needs --model-control-mode explicit, it is {given.model_control_mode}")
    if "*" in given.load_model and len(given.load_model) > 1:
        raise SettingsError("--load-model '*' must be the only --load-model")
    backends: dict[str, dict[str, str]] = {}
    for backend, key, value in given.backend_config:
        backends.setdefault(backend, {})[key] = value
    return Settings(
        repositories=tuple(given.model_repository),
        load_models=tuple(given.load_model),
        auto_complete_config=not given.disable_auto_complete_config,
        backend_config=backends,
        grpc=grpc_settings.read(given),
        **{name: getattr(given, name) for name in _AS_GIVEN},
    )


_AS_GIVEN = (
    "id", "http_address", "http_port", "allow_metrics", "metrics_address", "metrics_port", "model_control_mode",
    "repository_poll_secs", "strict_readiness", "exit_on_error", "exit_timeout_secs", "model_load_thread_count",
    "max_queue_size", "log_verbose", "log_format", "log_info", "log_warning", "log_error",
)  # fmt: skip


def check_host(settings: Settings) -> None:
    """Look at what only this host can tell: folders are there, ports are free. Raises SettingsError."""
    for folder in settings.repositories:
        if not folder.is_dir():
            kind = "is not a folder" if folder.exists() else "does not exist"
            raise SettingsError(f"--model-repository {folder} {kind}")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise SettingsError(f"--model-repository {folder} cannot be read")
    grpc = settings.grpc
    if grpc.allowed:
        if grpc.unix is not None:
            _check_unix(grpc.unix)
        else:
            _check_port("grpc", grpc.address, grpc.port)
    if settings.allow_metrics:
        _check_port("metrics", settings.metrics_address, settings.metrics_port)
        if grpc.allowed and settings.metrics_port and settings.metrics_port == grpc.port:
            raise SettingsError(f"--metrics-port {settings.metrics_port} is the --grpc-port too")


def _check_unix(path: Path) -> None:
    if not path.parent.is_dir():
        raise SettingsError(f"--grpc-address unix:{path}: there is no folder {path.parent}")
    if path.exists():
        raise SettingsError(f"--grpc-address unix:{path}: there is something already")


def _check_port(face: str, address: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"--{face}-port {port}: something else listens there on {address}") from None
        raise SettingsError(f"--{face}-address {address}, port {port}: {error.strerror or error}") from None


def from_command_line(argv: Sequence[str] | None = None) -> Settings:
    """Settings that this host can serve with; any mistake is one line on standard error and exit status 2."""
    try:
        settings = parse(sys.argv[1:] if argv is None else argv)
        check_host(settings)
    except SettingsError as error:
        print(f"demiglace serve: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return settings
