"""The rules of the house that a machine can check: who imports whom, how long a module is, what is never called."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protos", "compressor", "server")
MODULES = sorted(
    path
    for package in (*PACKAGES, "tests")
    for path in (ROOT / package).rglob("*.py")
    if not path.stem.endswith("_pb2") and not path.stem.startswith("_generated")
)
PRODUCT = [path for path in MODULES if path.relative_to(ROOT).parts[0] in PACKAGES]

MAY_IMPORT = {"protos": {"protos"}, "compressor": {"protos", "compressor"}, "server": {"protos", "server"}}
ONLY_IN = {
    # Third-party weight stays at the edge: package -> the places that may import it.
    "grpc": ("server/rpc/",),
    "grpc_health": ("server/rpc/",),
    "grpc_reflection": ("server/rpc/",),
    "onnxruntime": ("server/backends/ort", "compressor/"),
    "google": ("protos/", "server/rpc/"),
    "ngh2": ("server/rpc/http2/library",),
    "torch": ("compressor/",),
    "onnx": ("compressor/",),
    "onnx_ir": ("compressor/",),
    "onnxscript": ("compressor/",),
    "transformers": ("compressor/",),
    "prometheus_client": ("server/metrics",),
}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "torch.jit.load"}
UNSAFE_ARGUMENTS = {("allow_pickle", True), ("weights_only", False), ("shell", True), ("trust_remote_code", True)}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    long = {
        node.name: (node.end_lineno or 0) - node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno > 60
    }
    assert not long


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    ours = MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    for module in imported(ast.parse(path.read_text())):
        top = module.split(".")[0]
        if top in (*PACKAGES, "tests"):
            assert top in ours, f"imports {module}"
        if top in ONLY_IN:
            assert name_of(path).startswith(ONLY_IN[top]), f"imports {module}, allowed only in {ONLY_IN[top]}"


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_nothing_is_loaded_or_run_in_an_unsafe_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not UNSAFE_MODULES & {module.split(".")[0] for module in imported(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        assert called(node) not in UNSAFE_CALLS, ast.unparse(node)
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Constant):
                assert (keyword.arg, keyword.value.value) not in UNSAFE_ARGUMENTS, ast.unparse(node)
        if called(node) == "torch.load":
            assert "weights_only" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)


@pytest.mark.parametrize("path", [p for p in PRODUCT if name_of(p).startswith("server/")], ids=name_of)
def test_the_server_measures_time_on_the_monotonic_clock_only(path: Path) -> None:
    """Wall-clock time jumps: only logs and `last_inference` show it, through `time.time_ns`."""
    calls = {called(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert "time.time" not in calls
    assert "datetime.now" not in calls


def test_the_server_starts_without_torch_and_onnx() -> None:
    code = (
        "import sys, server.app, server.catalog, server.rpc.service, server.backends.ort\n"
        "print(sorted({'torch', 'onnx', 'transformers', 'onnxscript'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("module", ["server.backends.ort", "compressor.pipeline"])
def test_telemetry_is_off_before_onnxruntime_is_imported(module: str) -> None:
    code = f"import {module}, os; print(os.environ.get('ORT_DISABLE_TELEMETRY'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "1", done.stderr


def test_package_inits_hold_no_logic() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
            assert not functions, name_of(path)
