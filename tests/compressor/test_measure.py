"""The children that a job starts to measure end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.bench.tiny import write_tiny
from tests.children import ROOT

PROGRAM = """
import sys, time
from pathlib import Path
from compressor import measure
with measure._server(Path(sys.argv[1])) as address:
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_job_that_is_killed_leaves_no_server_behind(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        servers = psutil.Process(job.pid).children(recursive=True)
        assert servers
        os.kill(job.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert not alive
