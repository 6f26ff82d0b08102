"""Which backends there are. A backend is imported when it is first asked for, so that none is paid for unused."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from server.backends.base import Backend, BackendError

_CLASSES = {
    "fake": ("server.backends.fake", "Fake"),
    "onnxruntime": ("server.backends.ort", "OnnxRuntime"),
}

PLATFORMS = {"onnxruntime_onnx": "onnxruntime"}
"""`platform` names of `config.pbtxt` that mean a backend of another name."""


def names() -> tuple[str, ...]:
    return tuple(sorted(_CLASSES))


def get(name: str) -> Backend:
    """The backend of that name (or platform name). Raises BackendError if there is none or it cannot be imported."""
    known = PLATFORMS.get(name, name)
    if known not in _CLASSES:
        raise BackendError(f"unknown backend '{name}'; there are: {', '.join(names())}")
    return _instance(known)


@cache
def _instance(name: str) -> Backend:
    module, cls = _CLASSES[name]
    try:
        backend: Backend = getattr(import_module(module), cls)()
    except ImportError as error:
        raise BackendError(f"backend '{name}' is not usable here: {error}") from error
    return backend
