"""The command line: what it means, and that a mistake is one line, status 2, at once."""

from __future__ import annotations

import io
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs
from server.settings import Settings, SettingsError, check_host, parse


def settings_of(*argv: str, repository: str = "/r") -> Settings:
    return parse(["--model-repository", repository, *argv])


def test_defaults_are_safe_and_triton_s() -> None:
    settings = settings_of()
    assert (settings.grpc.port, settings.metrics_port, settings.model_control_mode) == (8001, 8002, "none")
    assert settings.grpc.address == settings.metrics_address == "127.0.0.1"
    assert settings.strict_readiness
    assert settings.exit_on_error
    assert settings.exit_timeout_secs == 30
    assert settings.auto_complete_config
    assert not settings.grpc.limits.compression
    assert settings.max_queue_size > 0, "the queue is bounded unless told otherwise"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("off", False)])
def test_booleans_are_read_as_triton_reads_them(text: str, value: bool) -> None:
    assert settings_of("--strict-readiness", text).strict_readiness is value
    assert settings_of(f"--strict-readiness={text}").strict_readiness is value


def test_a_boolean_without_a_value_is_true() -> None:
    assert not settings_of("--disable-auto-complete-config").auto_complete_config


def test_repeatable_flags_keep_their_order() -> None:
    settings = settings_of("--model-repository", "/s", "--model-control-mode", "explicit", "--load-model", "a",
                           "--load-model", "b")  # fmt: skip
    assert settings.repositories == (Path("/r"), Path("/s"))
    assert settings.load_models == ("a", "b")


def test_a_backend_s_own_setting_wins_over_the_one_for_all() -> None:
    flags = ("default-max-batch-size=8", "onnxruntime,default-max-batch-size=16", "onnxruntime,a=b=c")
    settings = settings_of(*(f"--backend-config={flag}" for flag in flags))
    assert settings.default_max_batch_size("onnxruntime") == 16
    assert settings.default_max_batch_size("fake") == 8
    assert settings.backend_options("onnxruntime")["a"] == "b=c"
    assert settings_of().default_max_batch_size("fake") == 4


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--grpc-port", "70000"], "--grpc-port is '70000', allowed is a whole number from 0 to 65535"),
        (["--grpc-port", "x"], "--grpc-port is 'x'"),
        (["--strict-readiness", "maybe"], "--strict-readiness is 'maybe', allowed are true and false"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--allow-http", "true"], "--allow-http true: the REST face is not there yet"),
        (["--model-control-mode", "sometimes"], "invalid choice: 'sometimes'"),
        (["--load-model", "a"], "--load-model needs --model-control-mode explicit, it is none"),
        (["--model-control-mode", "explicit", "--load-model", "*", "--load-model", "a"], "must be the only"),
        (["--backend-config", "nothing"], "allowed is <backend>,<key>=<value> or <key>=<value>"),
        (["--backend-config", "x,default-max-batch-size=many"], "allowed is a whole number"),
        (["--exit-timeout-secs", "-1"], "--exit-timeout-secs is '-1'"),
    ],
)
def test_a_wrong_flag_is_one_line_naming_flag_value_and_what_is_allowed(argv: list[str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of(*argv)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_repository_is_required() -> None:
    with pytest.raises(SettingsError, match="--model-repository is missing"):
        parse([])


def test_a_missing_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        check_host(settings_of(repository=str(tmp_path / "no")))
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is not a folder"):
        check_host(settings_of(repository=str(tmp_path / "file")))


@pytest.mark.parametrize("face", ["grpc", "metrics"])
def test_a_taken_port_is_said(tmp_path: Path, face: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        argv = ["--grpc-port", "0", "--metrics-port", "0", f"--{face}-port", port]
        with pytest.raises(SettingsError, match=f"--{face}-port {port}: something else listens there"):
            check_host(settings_of(*argv, repository=str(tmp_path)))


def test_a_mistake_ends_the_process_with_status_2_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, server.__main__ as m\n"
        "try: m.main(sys.argv[1:])\n"
        "finally: print(sorted({'numpy', 'grpc', 'onnxruntime', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--model-repository", str(tmp_path / "no")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == "[]\n"
    assert done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr


# --- the log ---


def logged(form: str, event: str, **fields: object) -> str:
    stream = io.StringIO()
    logs.configure(settings_of("--log-format", form), stream)
    logs.log.info(event, **fields)
    return stream.getvalue()


@given(st.text(max_size=3000), st.text(max_size=3000))
@pytest.mark.parametrize("form", ["default", "ISO8601", "json"])
def test_an_event_is_one_printable_line_whatever_is_in_it(form: str, event: str, value: str) -> None:
    line = logged(form, event, id=value)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) <= 4 * logs.LINE_LIMIT
    if form == "json":
        assert json.loads(line)["level"] == "info"


def test_a_megabyte_in_an_id_is_cut() -> None:
    assert len(logged("default", "x", id="a" * (1 << 20))) <= logs.LINE_LIMIT + 1


def test_a_defect_keeps_its_trace_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure(settings_of(), stream)
    try:
        raise ZeroDivisionError("three\nlines\r")
    except ZeroDivisionError as error:
        logs.log.defect("handler failed", error)
    assert stream.getvalue().count("\n") == 1
    assert "ZeroDivisionError" in stream.getvalue()


def test_levels_are_switched_by_their_flags() -> None:
    stream = io.StringIO()
    logs.configure(settings_of("--log-info", "false", "--log-verbose", "1"), stream)
    logs.log.verbose("v")
    logs.log.info("i")
    logs.log.warning("w")
    logs.log.error("e")
    assert [line[0] for line in stream.getvalue().splitlines()] == ["V", "W", "E"]
    logs.configure(settings_of(), io.StringIO())
    assert not logs.log.is_verbose
    assert logging.getLogger("demiglace.server").level == logging.INFO
