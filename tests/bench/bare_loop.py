"""A bare onnxruntime loop: the speed that a server of the same model can at best reach on this host.

    python -m tests.bench.bare_loop MODEL.onnx SECONDS all|CALLERSxTHREADSxBATCH NAME:DIM[,DIM...] ...

Runs in a process of its own so that nothing of ours is in the way. `all` tries every sensible way to use the cores (one
caller with all of them, one caller per core) at several batch sizes; the rows per second of each are printed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
BATCHES = (1, 2, 4, 8, 16, 32)


def rows_per_second(session: ort.InferenceSession, feed: dict[str, np.ndarray], callers: int, seconds: float) -> float:
    rows = next(iter(feed.values())).shape[0]
    done = [0] * callers
    session.run(None, feed)
    start = time.perf_counter()

    def call(i: int) -> None:
        while time.perf_counter() - start < seconds:
            session.run(None, feed)
            done[i] += rows

    threads = [threading.Thread(target=call, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def draw(rng: np.random.Generator, tensor: ort.NodeArg, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(1, 2 if "mask" in tensor.name else 20000, shape).astype(DTYPES[tensor.type])


def main(path: str, seconds: float, ways: list[tuple[int, int, int]], shapes: dict[str, tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    sessions = {}
    rates = {}
    for callers, threads, batch in ways:
        if threads not in sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            sessions[threads] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {i.name: draw(rng, i, (batch, *shapes[i.name])) for i in sessions[threads].get_inputs()}
        rates[f"{callers}x{threads}x{batch}"] = rows_per_second(sessions[threads], feed, callers, seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    every = [(callers, cores // callers, batch) for callers in sorted({1, cores}) for batch in BATCHES]
    one = sys.argv[3]
    asked = every if one == "all" else [(*map(int, one.split("x")),)]
    named = (argument.split(":") for argument in sys.argv[4:])
    shape_of = {name: tuple(int(d) for d in dims.split(",")) for name, dims in named}
    main(sys.argv[1], float(sys.argv[2]), asked, shape_of)  # type: ignore[arg-type]
