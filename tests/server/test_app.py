"""The server's life as a child process: what it prints, how it ends, and that ending loses nothing."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from server.grpc_settings import TRANSPORTS
from server.rpc.service import SHUTTING_DOWN
from tests.children import ROOT, started_server
from tests.server.harness import ROW, tensor, write_entry

GATED = {"gate_file": "go"}
BATCHING = "max_batch_size: 8\ndynamic_batching { }\ninstance_group [{ count: 1 kind: KIND_CPU }]\n"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    command = [sys.executable, "-m", "server", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """For another process, which gives no event to wait on."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


def test_start_prints_where_it_listens_what_it_serves_and_ready(tmp_path: Path) -> None:
    write_entry(tmp_path, config=BATCHING)
    with started_server(tmp_path) as child:
        out = [line for line in child.lines if not re.match(r"[VIWE]\d{4} ", line)]
        assert re.fullmatch(r"gRPC listening on 127\.0\.0\.1:\d+", out[0])
        assert re.fullmatch(r"metrics listening on 127\.0\.0\.1:\d+", out[1])
        assert out[2] == "model=m  version=1  state=READY  device=CPU  instances × threads=1 × -  batch=1-8"
        assert out[3] == "ready: 1 model versions, 0 entries not loaded"
        with triton.InferenceServerClient(child.url) as client:
            assert client.is_server_ready()
            assert np.array_equal(client.infer("m", [tensor(ROW)]).as_numpy("y"), ROW)
        with urlopen(f"http://{child.address('metrics')}/metrics", timeout=10) as page:
            assert b'nv_inference_count{model="m",version="1"} 1.0' in page.read()
    assert child.process.returncode == 0


def test_json_logs_are_an_object_per_line(tmp_path: Path) -> None:
    write_entry(tmp_path)
    with started_server(tmp_path, "--log-format", "json", "--log-verbose", "1") as child:
        client = triton.InferenceServerClient(child.url)
        with pytest.raises(InferenceServerException):
            client.infer("m", [tensor(np.zeros((1, 5)))], request_id="bad\nid\x1b[31m")
        client.close()
    events = [json.loads(line) for line in child.lines if line.startswith("{")]
    assert [e["event"] for e in events if e["level"] == "info"] == ["loaded", "ready", "draining", "stopped"]
    assert any(e["event"] == "request failed" and "bad\\nid" in e["id"] for e in events)
    assert not [line for line in child.lines if "\x1b" in line]


def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--model-repository", str(tmp_path), "--grpc-port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "something else listens there" in done.stderr


@pytest.mark.parametrize("exit_on_error", ["true", "false"])
def test_a_model_that_does_not_load_ends_the_server_unless_told_otherwise(tmp_path: Path, exit_on_error: str) -> None:
    write_entry(tmp_path, "bad", behaviour={"load_error": "burnt"})
    write_entry(tmp_path, "good")
    if exit_on_error == "true":
        done = run("--model-repository", str(tmp_path), "--grpc-port", "0", "--metrics-port", "0")
        assert done.returncode == 1
        assert "burnt" in done.stderr
        assert "Traceback" not in done.stderr
        return
    with started_server(tmp_path, "--exit-on-error", "false") as child:
        assert any(line.startswith("not loaded: load failed for model 'bad'") for line in child.lines)
        with triton.InferenceServerClient(child.url) as client:
            assert not client.is_server_ready(), "readiness is strict"
            assert client.is_model_ready("good")
            index = {(m.name, m.state): m.reason for m in client.get_model_repository_index().models}
        assert "burnt" in index["bad", "UNAVAILABLE"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(tmp_path: Path, transport: str) -> None:
    entry = write_entry(tmp_path, config=BATCHING, behaviour=GATED)
    results: list[Any] = []
    answered = threading.Event()

    def keep(result: Any, error: Any) -> None:
        results.append(error or float(result.as_numpy("y")[0, 0]))
        if len(results) == 100:
            answered.set()

    serving = started_server(tmp_path, "--grpc-transport", transport)
    with serving as child, triton.InferenceServerClient(child.url) as client:
        for i in range(100):
            client.async_infer("m", [tensor(ROW + i)], callback=keep)
        wait_for(lambda: pending(child.address("metrics")) >= 92)
        with grpc.insecure_channel(child.url) as channel:
            states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            child.process.send_signal(signal.SIGTERM)
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(InferenceServerException, match=SHUTTING_DOWN):
            client.infer("m", [tensor(ROW)])
        (entry / "1" / "go").touch()
        assert answered.wait(20)
        assert child.process.wait(20) == 0
    assert sorted(results) == [float(i) for i in range(100)]


@pytest.mark.parametrize("round_", range(2))
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path, transport: str, round_: int) -> None:
    write_entry(tmp_path, config=BATCHING, behaviour={"delay_ms": 2})
    outcomes: Counter[str] = Counter()

    async def main(url: str, stop: Callable[[], None]) -> None:
        async def client() -> None:
            async with triton_aio.InferenceServerClient(url) as connection:
                while not outcomes["refused"]:
                    try:
                        await connection.infer("m", [tensor(ROW)])
                    except InferenceServerException as error:
                        outcomes["refused" if str(error.status()) == "StatusCode.UNAVAILABLE" else str(error)] += 1
                    else:
                        outcomes["answered"] += 1
                        if outcomes["answered"] == 300:
                            stop()

        await asyncio.gather(*(client() for _ in range(16)))

    with started_server(tmp_path, "--log-format", "json", "--grpc-transport", transport) as child:
        asyncio.run(main(child.url, child.process.terminate))
        assert child.process.wait(20) == 0
    stopped = json.loads(next(line for line in child.lines if '"stopped"' in line))
    assert set(outcomes) == {"answered", "refused"}
    assert stopped["answered"] == outcomes["answered"] >= 300
    assert stopped["drained"] is True


def pending(metrics: str) -> float:
    with urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        found = re.search(r"^nv_inference_pending_request_count\{.*\} (\S+)$", page.read().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_the_exit_timeout_cuts_off_what_does_not_finish(tmp_path: Path) -> None:
    write_entry(tmp_path, config=BATCHING, behaviour=GATED)
    errors: list[Any] = []
    ended = threading.Event()

    def keep(result: Any, error: Any) -> None:
        errors.append(error)
        if len(errors) == 10:
            ended.set()

    with started_server(tmp_path, "--exit-timeout-secs", "1") as child:
        client = triton.InferenceServerClient(child.url)
        calls = [client.async_infer("m", [tensor(ROW)], callback=keep) for _ in range(10)]
        wait_for(lambda: pending(child.address("metrics")) > 0)  # one batch runs, so the rest waits
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(20) == 1
        assert ended.wait(10)
        client.close()
        del calls
    assert None not in errors


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(tmp_path: Path, second: signal.Signals) -> None:
    write_entry(tmp_path, config=BATCHING, behaviour=GATED)
    with started_server(tmp_path, "--exit-timeout-secs", "600") as child:
        client = triton.InferenceServerClient(child.url)
        calls = [client.async_infer("m", [tensor(ROW)], callback=lambda result, error: None) for _ in range(10)]
        wait_for(lambda: pending(child.address("metrics")) > 0)
        child.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any("draining" in line for line in child.lines))
        child.process.send_signal(second)
        assert child.process.wait(20) == 1
        client.close()
        del calls


def test_sigterm_while_a_model_hangs_in_its_load_ends_in_time(tmp_path: Path) -> None:
    write_entry(tmp_path)
    code = (
        "import sys, threading\n"
        "from server import loading, __main__\n"
        "def hang(self, entry, version): print('loading', flush=True); threading.Event().wait()\n"
        "loading.EntryLoader.__call__ = hang\n"
        "sys.exit(__main__.main(sys.argv[1:]))\n"
    )
    flags = ["--model-repository", str(tmp_path), "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-c", code, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        while process.stdout.readline() != "loading\n":
            pass
        with triton.InferenceServerClient(url) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert client.get_model_repository_index().models[0].state == "LOADING"
        process.terminate()
        assert process.wait(20) == 0


def test_a_terminal_gets_a_drawn_table(tmp_path: Path) -> None:
    from server.app import _table
    from server.states import Row

    class Terminal:
        def __init__(self) -> None:
            self.text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None: ...

    out = Terminal()
    _table(out, [(Row("m", "1", "UNAVAILABLE", "burnt"), None)])  # type: ignore[arg-type]
    assert "instances" in out.text
    assert "UNAVAILABLE" in out.text
    assert "\n" in out.text
