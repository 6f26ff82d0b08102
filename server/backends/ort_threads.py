"""How many threads a session gets where nobody says: none beside the caller's own for models that are done sooner.

To wake a thread takes 10 to 50 µs, and onnxruntime divides any matrix product: a perceptron 784-512-10 takes 28 µs for
a row with one thread and 40 with two, which through the server are 3,700 and 3,200 requests per second with one in
flight. With 64 rows it is 470 µs against 290, which the server does not show: another core is then busy with
connections. Whether a model is short cannot be read from its file (a convolution has few weights and much work), so
small ones are run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from protos.model_config import ModelIO
from server.backends.base import Array

SHORT_NS = 50_000
"""A run of one row, made by one thread, that is not worth another."""
TRIAL_BYTES = 16 << 20
"""Files above this are not tried: to read 16 MiB of weights takes a core longer than SHORT_NS."""
RUNS = 20


def worth_a_trial(path: Path, io: ModelIO) -> bool:
    """Whether a row of this model can be made up, and may be short."""
    rows = all(len(info.shape) > 1 for info in io.inputs)  # of rank 1, a variable dimension may be of any length
    known = all(dim >= 0 for info in io.inputs for dim in (info.shape[1:] if rows else info.shape))
    numbers = not any(info.datatype.numpy.hasobject for info in io.inputs)
    return known and numbers and path.stat().st_size <= TRIAL_BYTES


def is_short(run: Callable[[dict[str, Array]], object], io: ModelIO) -> bool:
    """Runs one row of zeros some times; a model that refuses them is not short."""
    feeds = {}
    for info in io.inputs:
        shape = tuple(max(1, dim) for dim in info.shape)
        if math.prod(shape) * info.datatype.itemsize > TRIAL_BYTES:
            return False
        feeds[info.name] = np.zeros(shape, info.datatype.numpy)
    taken = []
    try:
        for _ in range(RUNS):
            began = perf_counter_ns()
            run(feeds)
            taken.append(perf_counter_ns() - began)
            if taken[-1] > 100 * SHORT_NS:
                return False
    except Exception:  # noqa: BLE001  zeros are not what it was made for, and the runtime raises whatever it likes
        return False
    return min(taken) < SHORT_NS
