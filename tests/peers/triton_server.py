"""A real Triton, from the wheel `nvidia-pytriton` (with the real tritonserver; Linux x86-64, glibc 2.35 or newer).

It is kept in `.cache/triton` with an environment of its own. That wheel has no C++ onnxruntime backend, so a
Python-based backend of the same name stands in for it (`onnxruntime_backend.py`): the configuration grammar, its
validation, the batcher, the protocol and the status texts are Triton's own, the call into onnxruntime is not.
Auto-completion is switched off: a `config.pbtxt` that lacks anything is refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.children import ROOT
from tests.peers.peer import NotInstalled, Running, free_ports, spawned

CACHE = ROOT / ".cache" / "triton"
WHEEL = "nvidia-pytriton==0.7.0"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LOG = CACHE / "tritonserver.log"
SETTINGS = "python backend, its dynamic batcher and instances as config.pbtxt says, onnxruntime with one thread each"


def prepare() -> Path:
    """Download and unpack Triton, make its backends; returns the folder of the server. Raises NotInstalled."""
    server = CACHE / "wheel" / "pytriton" / "tritonserver"
    if (CACHE / "ready").exists():
        return server
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    try:
        _unpack(server)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"triton: {WHEEL}: {error}") from None
    (CACHE / "ready").touch()
    return server


def _unpack(server: Path) -> None:
    run = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*run, "download", "--no-deps", "-d", CACHE, WHEEL], check=True)
    with zipfile.ZipFile(next(CACHE.glob("nvidia_pytriton*.whl"))) as wheel:
        wheel.extractall(CACHE / "wheel")
    subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True)
    pip = [CACHE / "venv" / "bin" / "python", "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "numpy<2", "onnxruntime"], check=True)
    backends = CACHE / "backends"
    shutil.copytree(server / "backends" / "python", backends / "python")
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    for program in (server / "bin" / "tritonserver", backends / "python" / stub.name):
        program.chmod(0o755)


def _install_backend() -> None:
    # at every start: it may have changed since Triton was unpacked
    folder = CACHE / "backends" / "onnxruntime"
    folder.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), folder / "model.py")


@contextmanager
def started(repository: Path) -> Iterator[Running]:
    """Triton on free ports, ready. Raises NotInstalled."""
    server = prepare()
    _install_backend()
    http, grpc, metrics = free_ports(3)
    environment = {
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{CACHE / 'wheel' / 'nvidia_pytriton.libs'}",
        "PYTHONPATH": str(next((CACHE / "venv" / "lib").glob("python*")) / "site-packages"),
        "PATH": f"{CACHE / 'venv' / 'bin'}:{os.environ['PATH']}",
    }
    command: list[str | Path] = [server / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={CACHE / 'backends'}", "--disable-auto-complete-config", "--exit-on-error=false"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    command += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    address = f"127.0.0.1:{grpc}"
    with (
        triton.InferenceServerClient(address) as client,
        spawned(command, lambda: _ready(client), LOG, environment) as process,
    ):
        version = client.get_server_metadata().version
        yield Running("Triton", version, SETTINGS, process, address)


def _ready(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except InferenceServerException:
        return False
