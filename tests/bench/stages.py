"""Which stage of a request a sample belongs to: the tables, and the folding of two samplers' stacks by them.

perf samples whatever runs on a core, and so gives the processor time, but it cannot name Python functions (3.11 has no
frames for it). py-spy names them, but cannot tell who runs from who waits, except through the interpreter's lock. So:
perf's samples in the kernel, in gRPC's core, in the HTTP/2 library and in onnxruntime are counted as they are; those in
the interpreter are shared out as py-spy saw the holder of the lock spend its time in Python.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SOCKET = "sockets, epoll"
TRANSPORT = "HTTP/2, gRPC, event loop"
DECODE = "decode"
VALIDATE = "look up, validate"
QUEUE = "queue, locks, thread switches"
COLLATE = "collate"
RUN = "session.run"
POOL = "onnxruntime's pool, mostly spinning"
ENCODE = "split, encode"
STATISTICS = "statistics"
OTHER = "other"
STAGES = (SOCKET, TRANSPORT, DECODE, VALIDATE, QUEUE, COLLATE, RUN, POOL, ENCODE, STATISTICS, OTHER)

PYTHON: tuple[tuple[str, str, str], ...] = (
    # path of the module (a prefix), function (a pattern), stage; the first that fits the innermost frame decides
    ("asyncio/", r"call_soon_threadsafe|_write_to_self|_read_from_self", QUEUE),
    ("server/rpc/grpcio.py", r"Completions\.|_Call\.(complete|resolve)", QUEUE),
    ("server/rpc/http2/transport.py", r"_wake|_woken|\.post", QUEUE),
    ("server/rpc/http2/transport.py", "", SOCKET),
    ("server/rpc/http2/shared.py", "", QUEUE),
    ("server/rpc/fronts/", r"", QUEUE),
    ("server/rpc/infer_wire.py", r"prefix", ENCODE),
    ("server/rpc/infer_", "", DECODE),
    ("server/rpc/tensors.py", r"pack$", ENCODE),
    ("server/rpc/tensors.py", "", DECODE),
    ("server/rpc/codec.py", r"encode|pack|_set|_too_large|answer|response", ENCODE),
    ("server/rpc/codec.py", "", DECODE),
    ("server/rpc/service.py", r"_answer", ENCODE),
    ("server/rpc/service.py", r"[._]submit|on_done|_done|release|_cancel|_successor", QUEUE),
    ("server/rpc/service.py", "", DECODE),
    ("server/rpc/", "", TRANSPORT),
    ("server/catalog.py", "", VALIDATE),
    ("server/model.py", "", VALIDATE),
    ("server/validate.py", "", VALIDATE),
    ("server/request.py", "", DECODE),
    ("server/classification.py", "", ENCODE),
    ("server/batching/collate.py", r"gather|answer|_selected|_to_client|_tensor|_shortened", ENCODE),
    ("server/batching/collate.py", "", COLLATE),
    ("server/batching/buffers.py", "", COLLATE),
    ("server/batching/padding.py", "", COLLATE),
    ("server/batching/", "", QUEUE),
    ("server/statistics.py", "", STATISTICS),
    ("server/metrics.py", "", STATISTICS),
    ("server/backends/", "", RUN),
    ("onnxruntime/", "", RUN),
    ("threading.py", r"notify|wait|acquire|release|_is_owned|__enter__|__exit__", QUEUE),
    ("asyncio/", "", TRANSPORT),
    ("selectors.py", "", TRANSPORT),
    ("grpc/", "", TRANSPORT),
    ("ngh2/", "", TRANSPORT),
)

NATIVE: tuple[tuple[str, str], ...] = (
    # library or C file (a part of its path), stage
    ("grpc/_cython/cygrpc", TRANSPORT),
    ("ngh2/_core", TRANSPORT),
    ("ngh2/events", TRANSPORT),
    ("onnxruntime/capi", RUN),
    ("onnxruntime_pybind11_state", RUN),
    ("socketmodule.c", SOCKET),
    ("selectmodule.c", SOCKET),
)

KERNEL: tuple[tuple[str, str], ...] = (
    # function anywhere among the kernel's frames (a pattern), stage; a socket pair or an eventfd wakes a thread
    (r"^(unix_stream_|eventfd_|pipe_|do_futex|futex_|.*sys_futex|.*sched_yield)", QUEUE),
    (r"^(tcp_|inet_|sock_|__sock|ep_|do_epoll|.*sys_(send|recv|epoll|poll|accept|shutdown)|net_rx_action)", SOCKET),
    (r"^(schedule|__schedule)$", QUEUE),
)
INTERPRETER = "interpreter"
"""Of perf's samples: to be shared out as py-spy says."""

_PYTHON_FRAME = re.compile(r"(?P<function>.*) \((?P<path>[^()]*\.py):\d+\)$")
_ANY_FRAME = re.compile(r".* \((?P<where>[^()]*)\)$")


def of_python(stack: str) -> str | None:
    """The stage of one of py-spy's stacks; None when the lock's holder was in a library that perf counts by itself."""
    for frame in reversed(stack.split(";")):
        if found := _PYTHON_FRAME.match(frame):
            for prefix, function, stage in PYTHON:
                if found["path"].startswith(prefix) and re.search(function, found["function"]):
                    return stage
        elif (found := _ANY_FRAME.match(frame)) and _native(found["where"]):
            return None
    return OTHER


def of_perf(frames: Sequence[tuple[str, str]]) -> str:
    """The stage of one of perf's stacks, (function, library) innermost first; INTERPRETER for what is neither the
    kernel's nor a library's of its own."""
    kernel = [function for function, library in frames if library == "[kernel.kallsyms]"]
    for pattern, stage in KERNEL:
        if any(re.match(pattern, function) for function in kernel):
            return stage
    if kernel:
        return OTHER
    return _native(frames[0][1] if frames else "") or INTERPRETER


def _native(where: str) -> str | None:
    return next((stage for part, stage in NATIVE if part in where), None)


def samples(script: str) -> Iterable[tuple[int, list[tuple[str, str]]]]:
    """(thread, frames) of each sample in what `perf script -F tid,ip,sym,dso` prints."""
    for block in script.split("\n\n"):
        lines = block.strip("\n").splitlines()
        if lines and lines[0].strip().isdigit():
            yield int(lines[0]), [_frame(line) for line in lines[1:]]


def _frame(line: str) -> tuple[str, str]:
    _, _, rest = line.strip().partition(" ")
    function, _, library = rest.rpartition(" (")
    return function, library.rstrip(")")


def shares(script: str, spied: Mapping[str, int], python_threads: frozenset[int]) -> dict[str, float]:
    """Each stage's part of the processor time, from perf's samples and py-spy's stacks."""
    by_thread: dict[int, Counter[str]] = {}
    for thread, frames in samples(script):
        by_thread.setdefault(thread, Counter())[of_perf(frames)] += 1
    found: Counter[str] = Counter()
    for thread, stages in by_thread.items():
        if RUN in stages and thread not in python_threads:
            found[POOL] += stages.total()
        else:
            found.update(stages)
    total = found.total()
    if not total:
        raise ValueError("perf has no sample: was the server idle?")
    python: Counter[str] = Counter()
    for stack, count in spied.items():
        if (stage := of_python(stack)) is not None:
            python[stage] += count
    interpreter = found.pop(INTERPRETER, 0)
    each = interpreter / python.total() if python else 0.0
    if not python:
        found[OTHER] += interpreter
    return {stage: (found[stage] + each * python[stage]) / total for stage in STAGES}
