"""What all peers share: an environment of its own for each, made on demand, and a started server that can be asked.

A peer serves the entries of one of our repositories through onnxruntime. Each is a module here with `started`, and,
where the peer wants code, a second file that runs inside the peer's environment and so imports nothing of ours.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2

from protos import repository
from tests.children import ROOT
from tests.load.client import MODEL_INFER, OPTIONS, Address, encode

CACHE = ROOT / ".cache" / "peers"
ORT = "onnxruntime==1.31.1"
"""As in `constraints.txt`: the same in every peer."""
READY_S = 120.0

Array = np.ndarray[Any, Any]


class NotInstalled(RuntimeError):
    """This peer cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a model, and an array for each of its inputs, with the batch dimension."""

    model: str
    arrays: Mapping[str, Array]
    datatypes: Mapping[str, str]

    def as_grpc(self) -> bytes:
        plain = encode(Address(self.model, self.model, "", ""), self.arrays, self.datatypes)
        # with an id, as a client that tells its answers apart would send it
        return service_pb2.ModelInferRequest(id="1").SerializeToString() + plain

    def as_json(self) -> bytes:
        """For servers that speak HTTP: base64, which they decode faster than lists of numbers."""
        data = {
            name: {"dtype": array.dtype.name, "shape": array.shape[1:], "data": base64.b64encode(array).decode()}
            for name, array in self.arrays.items()
        }
        return json.dumps(data).encode()


@dataclass(frozen=True, slots=True)
class Running:
    """A started server; `address` is `host:port` for gRPC, or for HTTP if `http`."""

    name: str
    version: str
    settings: str
    process: psutil.Process
    address: str
    http: bool = False

    def ask(self, question: Question) -> Array:
        """The first output as float32, flat."""
        if self.http:
            url, headers = f"http://{self.address}/{question.model}", {"content-type": "application/json"}
            request = urllib.request.Request(url, question.as_json(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return np.frombuffer(base64.b64decode(json.loads(answer.read())["data"]), np.float32)
        with grpc.insecure_channel(self.address, options=OPTIONS) as channel:
            body = channel.unary_unary(MODEL_INFER)(question.as_grpc(), timeout=60)
        answered = service_pb2.ModelInferResponse.FromString(body)
        if answered.raw_output_contents:
            return np.frombuffer(answered.raw_output_contents[0], np.float32)
        return np.array(answered.outputs[0].contents.fp32_contents, np.float32)


@dataclass(frozen=True, slots=True)
class Served:
    """What a peer has to know of one entry of a repository."""

    file: Path
    instances: int


def entries(models: Path) -> dict[str, Served]:
    found = {}
    for name in repository.names(models):
        entry = repository.read(models, name)
        instances = sum(group.count for group in entry.config.instance_groups) or 1
        found[name] = Served(repository.model_file(entry, max(entry.versions)), instances)
    return found


def environment(name: str, *requirements: str) -> Path:
    """The Python of a peer's environment, made if it is not there. Raises NotInstalled."""
    folder = CACHE / name
    python, ready = folder / "venv" / "bin" / "python", folder / "ready"
    if ready.exists() and ready.read_text() == " ".join(requirements):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"  installing {name} into {folder.relative_to(ROOT)}", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, capture_output=True, text=True)
        pip = [python, "-m", "pip", "-q", "--disable-pip-version-check", "install", *requirements]
        subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()]
        raise NotInstalled(f"{name}: pip install {' '.join(requirements)}: {lines[-1] if lines else error}") from None
    ready.write_text(" ".join(requirements))
    return python


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def spawned(
    command: list[str | Path], ready: Callable[[], bool], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """A server until the end of the context, once `ready` says so; it and its children are ended then."""
    with log.open("w") as file:
        env = None if environment is None else {**os.environ, **environment}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=log.parent)
        try:
            _wait(process, ready, log)
            yield psutil.Process(process.pid)
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with status {process.returncode}, see {log}")  # type: ignore[str-bytes-safe]
        if time.monotonic() > end:
            raise RuntimeError(f"{process.args} was not ready after {READY_S:.0f} s, see {log}")  # type: ignore[str-bytes-safe]
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(children, 5)[1]:
        child.kill()


def http_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
