"""Runs before the first request, so that no client pays for what a first run does: memory, code, lazy preparation.

Each power of two of rows is run twice on every instance, with zeros: the first run is slow (a perceptron takes 0.4 ms
for its first row and 0.04 ms for the next), the second tells the pace by which quick models are known. Where a
dimension is variable its lengths cannot be guessed, one stands for all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from time import monotonic_ns

import numpy as np

from protos import padding
from protos.model_config import ConfigError, ModelConfig
from protos.padding import Place
from server.batching.runner import Runner
from server.logs import log
from server.request import InferRequest, Tensor
from server.validate import Validator

SECONDS = "1"
"""Where the backend option `warmup` says nothing."""

VARIABLE = 64
"""For variable dimensions: enough for the strides of image models, short for texts. Where a padding says that the model
takes no more than fewer, those."""

MAX_BYTES = 64 << 20
"""Of one batch's inputs: warming up must not need more memory than the load that follows."""


def seconds(option: str) -> float:
    """The backend option `warmup`: what all warm-up runs of a model may take, 0 for none. Raises ConfigError."""
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", option):
        raise ConfigError(f"backend option warmup is '{option}', allowed are seconds from 0 to 9999")
    return float(option)


def warm_up(config: ModelConfig, validator: Validator, runner: Runner, instances: int, budget: float) -> None:
    """Run on each instance, for at most `budget` seconds if sizes cost what their rows do. Never fails."""
    tensors = _zeros(config) if budget else None
    if tensors is None:
        return
    end = monotonic_ns() + int(budget * 1e9)
    size = sum(tensor.array.nbytes for tensor in tensors)
    try:
        for instance in range(instances):
            row_ns = 0
            for rows in _sizes(config.max_batch_size):
                if rows * size > MAX_BYTES:
                    continue
                for _ in range(2):
                    began = monotonic_ns()
                    if began + row_ns * rows > end:
                        break
                    requests = [InferRequest(config.name, tensors) for _ in range(rows)]
                    for request in requests:
                        validator.check(request)
                    runner.rehearse(instance, requests)
                    row_ns = (monotonic_ns() - began) // rows
    except Exception as error:  # noqa: BLE001  zeros of made-up shapes: what clients send, the model may well take
        log.verbose("warm-up ended", model=config.name, reason=error)


def _sizes(max_batch_size: int) -> Iterator[int]:
    """One row tells what a row costs; then the largest size first, since memory that fits it fits all."""
    yield 1
    rows = max_batch_size
    while rows > 1:
        yield rows
        rows = 1 << ((rows - 1).bit_length() - 1)


def _zeros(config: ModelConfig) -> tuple[Tensor, ...] | None:
    """One row of every input; None where that would tell nothing or take too much memory."""
    lead = (1,) if config.max_batch_size > 0 else ()
    declared = padding.read(config)
    most = {place: axis.maximum for axis in (declared.axes if declared else ()) for place in axis.inputs}
    tensors = []
    for spec in config.inputs:
        if spec.is_shape_tensor:  # zeros would ask for outputs without elements
            return None
        lengths = (min(VARIABLE, most.get(Place(spec.name, i)) or VARIABLE) for i in range(len(spec.dims)))
        shape = lead + tuple(length if dim < 0 else dim for dim, length in zip(spec.dims, lengths, strict=True))
        if math.prod(shape) * spec.datatype.numpy.itemsize > MAX_BYTES:
            return None
        fill = b"" if spec.datatype.numpy.hasobject else 0
        if not spec.optional:
            tensors.append(Tensor(spec.name, spec.datatype, np.full(shape, fill, spec.datatype.numpy)))
    return tuple(tensors)
