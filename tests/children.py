"""Real children for tests, benchmarks and the demo: a started server, a finished load test."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.load.result import Run, read

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class ServerChild:
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    """Everything it has printed so far, both streams."""
    settled: threading.Event = field(default_factory=threading.Event)
    """Set once it is ready, or has ended."""
    ready: bool = False

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready"):
                self.ready = True
                self.settled.set()
        self.settled.set()

    def address(self, what: str) -> str:
        """`gRPC` or `metrics` to `host:port`, as printed."""
        found = re.search(rf"^{what} listening on (\S+)$", "\n".join(self.lines), re.MULTILINE)
        assert found, "\n".join(self.lines)
        return found[1]

    @property
    def url(self) -> str:
        return self.address("gRPC")


@contextmanager
def started_server(repository: Path, *flags: str) -> Iterator[ServerChild]:
    """`python -m server` on free ports, ready; ended by SIGTERM."""
    command = [sys.executable, "-m", "server", "--model-repository", str(repository), "--grpc-port", "0"]
    command += ["--metrics-port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    child = ServerChild(process)
    reader = threading.Thread(target=child.read)
    reader.start()
    try:
        if not child.settled.wait(120) or not child.ready:
            raise RuntimeError("the server did not become ready:\n" + "\n".join(child.lines))
        yield child
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()
            reader.join()
            assert process.stdout is not None
            process.stdout.close()


def load_test(*flags: str) -> Run:
    """`python -m tests.load`, its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tests.load", *flags, "--json", str(result), "--no-progress"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise RuntimeError(f"the load test failed with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return read(result)
