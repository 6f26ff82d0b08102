"""A bare onnxruntime loop: the speed that a server of the same model can at best reach on this host.

    python -m tests.bench.bare_loop MODEL.onnx SECONDS all|CALLERSxTHREADSxBATCH NAME:DIM[,DIM...] ...

Runs in a process of its own so that nothing of ours is in the way. `all` tries every sensible way to use the cores (one
caller with all of them, one caller per core) at several batch sizes. Printed are, by way, the rows per second and the
median milliseconds of a run, as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

if TYPE_CHECKING:
    import onnxruntime as ort

BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Rates:
    rows: dict[str, float]
    """Per second, by way: callers x threads x batch."""
    p50_ms: dict[str, float]


def run(file: Path, seconds: float, way: str, shapes: Mapping[str, tuple[int, ...]]) -> Rates:
    """Run it as a child."""
    flags = [f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items()]
    command = [sys.executable, "-m", "tests.bench.bare_loop", str(file), str(seconds), way, *flags]
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    return Rates(**json.loads(done.stdout))


def loop(
    session: ort.InferenceSession, feed: dict[str, np.ndarray], callers: int, seconds: float
) -> tuple[float, float]:
    """Rows per second, and the median milliseconds of a run."""
    rows = next(iter(feed.values())).shape[0]
    took: list[list[float]] = [[] for _ in range(callers)]
    session.run(None, feed)
    start = time.perf_counter()

    def call(mine: list[float]) -> None:
        last = start
        while last - start < seconds:
            session.run(None, feed)
            now = time.perf_counter()
            mine.append(now - last)
            last = now

    threads = [threading.Thread(target=call, args=(mine,)) for mine in took]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [one for mine in took for one in mine]
    return len(every) * rows / (time.perf_counter() - start), statistics.median(every) * 1e3


def draw(rng: np.random.Generator, tensor: ort.NodeArg, shape: tuple[int, ...]) -> np.ndarray:
    if tensor.type == "tensor(float)":
        return rng.standard_normal(shape, np.float32)
    integers = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    return rng.integers(1, 2 if "mask" in tensor.name else 20000, shape).astype(integers[tensor.type])


def main(path: str, seconds: float, ways: list[tuple[int, int, int]], shapes: dict[str, tuple[int, ...]]) -> None:
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    sessions = {}
    found = Rates({}, {})
    for callers, threads, batch in ways:
        if threads not in sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            sessions[threads] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {i.name: draw(rng, i, (batch, *shapes[i.name])) for i in sessions[threads].get_inputs()}
        way = f"{callers}x{threads}x{batch}"
        found.rows[way], found.p50_ms[way] = loop(sessions[threads], feed, callers, seconds)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    every = [(callers, cores // callers, batch) for callers in sorted({1, cores}) for batch in BATCHES]
    one = sys.argv[3]
    asked = every if one == "all" else [(*map(int, one.split("x")),)]
    named = (argument.split(":") for argument in sys.argv[4:])
    shape_of = {name: tuple(int(d) for d in dims.split(",")) for name, dims in named}
    main(sys.argv[1], float(sys.argv[2]), asked, shape_of)  # type: ignore[arg-type]
