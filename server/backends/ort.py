"""ONNX models on ONNX Runtime: the only module of the server that imports it.

One session per device, whatever the number of instances: `run` of a session is thread-safe and its weights are in
memory once (Triton's backend has one session per instance; onnxruntime_backend #18).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from protos.datatypes import BY_NAME, BY_ONNX
from protos.model_config import ModelConfig, ModelIO, TensorInfo
from server.backends import onnx_file, onnx_steady, ort_options, ort_threads, preflight
from server.backends.base import Arrays, BackendError, Batch, Device, LoadRequest, Session
from server.backends.ort_options import Options

Array = np.ndarray[Any, Any]

_FATAL = 4  # errors arrive as exceptions; on stderr each would be a line per bad request
_GRAPH = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_BF16 = BY_NAME["BF16"]
_BYTES = BY_NAME["BYTES"]
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"

_BUILD_PATH = re.compile(r"/\S*/onnxruntime_src/\S*( [^:]*\) )?")
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)$")


class OnnxRuntime:
    name = "onnxruntime"

    def cpu_instances(self, config: ModelConfig, options: Mapping[str, str]) -> int:
        return 1 if ort_options.tuning(config, options) == "latency" else 2

    def gpus(self) -> tuple[int, ...]:
        if _CUDA not in ort.get_available_providers():
            return ()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            listed = [part for part in visible.split(",") if part.strip() not in ("", "-1")]
            return tuple(range(len(listed)))
        return tuple(range(sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))))

    def load(self, request: LoadRequest) -> OrtSession:
        path = model_file(request.path)
        _check_supported(request.config)
        options = ort_options.read(request.config, request.options, request.devices)
        onnx_file.check(path)
        if options.preflight and not request.verified:
            preflight.first_load(path, PROBE)
        steady = onnx_steady.is_steady(path)
        sessions = {device: _open(path, options, device) for device in dict.fromkeys(request.devices)}
        if steady and not options.threads_named and options.intra_op_threads > 1 and Device() in sessions:
            fewer = replace(options, intra_op_threads=1)
            if (one := _short(path, fewer, _io(sessions[Device()]))) is not None:
                sessions[Device()], options = one, fewer
        return OrtSession(sessions, request.devices, options, steady)


class OrtSession(Session):
    """See the backend contract; `sessions` has one entry per device."""

    def __init__(
        self,
        sessions: Mapping[Device, ort.InferenceSession],
        devices: Sequence[Device],
        options: Options,
        steady: bool = False,
    ) -> None:
        self.threads = options.intra_op_threads
        self._io = _io(next(iter(sessions.values())))
        infos = (*self._io.inputs, *self._io.outputs)
        bf16 = any(info.datatype is _BF16 for info in infos)
        self._strings = frozenset(info.name for info in self._io.inputs if info.datatype is _BYTES)
        strings = any(info.datatype is _BYTES for info in infos)
        self.steady = steady and not self._strings  # a text may be of any length
        run_options = ort.RunOptions()
        run_options.log_severity_level = _FATAL
        if options.arena_shrinkage:
            run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", options.arena_shrinkage)
        self._runs: list[Callable[[Arrays, tuple[str, ...]], list[Array]]] = []
        for device in devices:
            session = sessions[device]
            if bf16 or (device.kind == "cuda" and not strings):
                self._runs.append(Bound(session, device, self._io, run_options))
            else:
                self._runs.append(Plain(session, run_options))

    @property
    def io(self) -> ModelIO:
        return self._io

    def run(self, instance: int, batch: Batch) -> Arrays:
        feeds = batch.inputs
        if self._strings:
            feeds = {name: _decoded(a, name) if name in self._strings else a for name, a in feeds.items()}
        try:
            arrays = self._runs[instance](feeds, batch.outputs)
        except Exception as error:
            raise BackendError(reason(error)) from error
        return {
            name: _encoded(array) if array.dtype == object else array
            for name, array in zip(batch.outputs, arrays, strict=True)
        }

    def close(self) -> None:
        self._runs.clear()


class Plain:
    """Arrays in, arrays out: what CPU sessions and models with strings use."""

    def __init__(self, session: ort.InferenceSession, run_options: ort.RunOptions) -> None:
        self._session = session
        self._options = run_options

    def __call__(self, feeds: Arrays, outputs: tuple[str, ...]) -> list[Array]:
        return list(self._session.run(list(outputs), dict(feeds), self._options))


class Bound:
    """Through I/O binding: only the outputs asked for are computed into and fetched; also the way to feed BF16."""

    def __init__(self, session: ort.InferenceSession, device: Device, io: ModelIO, run_options: ort.RunOptions) -> None:
        self._session = session
        self._device = device
        self._inputs = {info.name: info.datatype for info in io.inputs}
        self._bf16 = frozenset(info.name for info in io.outputs if info.datatype is _BF16)
        self._options = run_options

    def __call__(self, feeds: Arrays, outputs: tuple[str, ...]) -> list[Array]:
        binding = self._session.io_binding()
        kept = []
        for name, array in feeds.items():
            contiguous = np.ascontiguousarray(array)
            if self._inputs[name] is _BF16:
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous.view(np.uint16), _BF16.onnx_code)
                binding.bind_ortvalue_input(name, value)
                kept.append(value)
            else:
                binding.bind_cpu_input(name, contiguous)
            kept.append(contiguous)
        for name in outputs:
            if name in self._bf16:
                binding.bind_output(name, "cpu")
            else:
                binding.bind_output(name, self._device.kind, self._device.index)
        self._session.run_with_iobinding(binding, self._options)
        return [
            _bf16_array(value) if name in self._bf16 else value.numpy()
            for name, value in zip(outputs, binding.get_outputs(), strict=True)
        ]


def model_file(path: Path) -> Path:
    """The file itself: a `model.onnx` may be a folder that holds one beside its external data (Triton's layout)."""
    return path / "model.onnx" if path.is_dir() else path


def _short(path: Path, options: Options, io: ModelIO) -> ort.InferenceSession | None:
    """A session with `options`, if its runs are so short that it needs no more threads."""
    if not ort_threads.worth_a_trial(path, io):
        return None
    session = _open(path, options, Device())
    return session if ort_threads.is_short(partial(session.run, None), io) else None


PROBE = f"{__name__}:probe"


def probe(path: Path) -> ModelIO:
    """Load a file on the CPU and let it go again: what the preflight's child does. Raises BackendError."""
    onnx_file.check(path)
    return _io(_open(path, Options(intra_op_threads=1), Device()))


def reason(error: Exception, path: Path | None = None) -> str:
    """One line of what ONNX Runtime says, without paths of its build or of our disk."""
    text = " ".join(str(error).split())
    match = _STATUS.match(text)
    if match:
        text = f"onnx runtime error {match[1]}: {match[2]}"
    if path is not None:
        text = text.replace(str(path), path.name).replace(str(path.parent) + "/", "")
    return _BUILD_PATH.sub("", text)[:1000]


def _open(path: Path, options: Options, device: Device) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = options.intra_op_threads
    settings.inter_op_num_threads = options.inter_op_threads
    settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL if options.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_cpu_mem_arena = options.mem_arena
    settings.enable_mem_pattern = options.mem_pattern
    settings.graph_optimization_level = _GRAPH[options.graph]
    for key, value in options.session.items():
        settings.add_session_config_entry(key, value)
    providers: list[Any] = [_CPU]
    if device.kind == "cuda":
        _preload_cuda()
        providers.insert(0, (_CUDA, {"device_id": str(device.index), **options.cuda}))
    try:
        session = ort.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:
        raise BackendError(f"{path.name}: {reason(error, path)}") from error
    # onnxruntime falls back to the CPU with no more than a warning; a slow answer to "why so slow" is no answer.
    if device.kind == "cuda" and session.get_providers()[0] != _CUDA:
        raise BackendError(f"{path.name}: {device} cannot be used: onnxruntime found no working CUDA libraries")
    return session


def _preload_cuda() -> None:
    """Find the CUDA libraries of the nvidia packages, where onnxruntime-gpu was installed with them."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def _io(session: ort.InferenceSession) -> ModelIO:
    return ModelIO(
        tuple(_info(arg, "input") for arg in session.get_inputs()),
        tuple(_info(arg, "output") for arg in session.get_outputs()),
    )


def _info(arg: Any, what: str) -> TensorInfo:
    kind = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    if kind is None or kind[1] not in BY_ONNX:
        known = ", ".join(BY_ONNX)
        raise BackendError(f"{what} '{arg.name}' is a {arg.type}; the protocol carries tensors of {known}")
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in arg.shape)
    return TensorInfo(arg.name, BY_ONNX[kind[1]], shape)


def _decoded(array: Array, name: str) -> Array:
    """ONNX Runtime takes text; bytes objects it would print (`b'…'`)."""
    result: Array = np.empty(array.shape, dtype=object)
    try:
        result.ravel()[:] = [value.decode() for value in array.ravel()]
    except UnicodeDecodeError:
        raise BackendError(f"input '{name}' holds bytes that are not UTF-8, which onnxruntime does not take") from None
    return result


def _encoded(array: Array) -> Array:
    result: Array = np.empty(array.shape, dtype=object)
    result.ravel()[:] = [value.encode() if isinstance(value, str) else value for value in array.ravel()]
    return result


def _bf16_array(value: ort.OrtValue) -> Array:
    """A copy, because numpy has no BF16 that onnxruntime could give a view of."""
    size = value.tensor_size_in_bytes()
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, dtype=_BF16.numpy).reshape(value.shape())


def _check_supported(config: ModelConfig) -> None:
    # onnxruntime_backend, src/onnxruntime.cc, refuses this too
    if config.max_batch_size > 0 and any(spec.optional for spec in config.inputs):
        raise BackendError(f"model '{config.name}': onnxruntime takes no optional inputs where max_batch_size is not 0")
