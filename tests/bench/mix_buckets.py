"""How wide buckets of length should be: the server's own queue over measured run times, in simulated time.

    python -m tests.bench.mix_buckets [titles] [sentences] [--in-flight 64]

Runs of the model are timed over a grid of batch sizes and lengths (processor time of one thread, the least of several
rounds); then the mix of `tests.bench.mix` goes through `server.batching.queue.Queue` in a closed loop over as many
instances as the entry has. No noise but that of the grid: ways that differ by a hundredth do differ.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnxruntime as ort

from protos import repository
from protos.model_config import DynamicBatching, ModelConfig
from server.batching.padding import Bucket
from server.batching.queue import Queue
from server.request import InferRequest
from tests.bench import mix, small_text, texts

LENGTHS = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, mix.LONGEST)
BATCHES = (1, 2, 4, 8, mix.LARGEST)
MODELS = tuple(model for model in mix.MODELS if model != small_text.NAME)
ROUNDS = 5
TEXTS = 6000
Group = Callable[[int], object]


def octaves(steps: int, smallest: int = 1) -> Group:
    """Buckets of a share of an octave."""

    def group(length: int) -> object:
        step = max(1, (1 << (max(length, smallest) - 1).bit_length()) // (2 * steps))
        return Bucket([-(-max(length, smallest) // step) * step])

    return group


WAYS: dict[str, Group] = {
    "equal shapes": lambda length: (length,),
    "arrival order": lambda length: (),
    "octaves": octaves(1),
    "half octaves": octaves(2),
    "quarters of an octave": octaves(4),
    "the same, the first to 4": octaves(4, 4),
    "the same, the first to 8": octaves(4, 8),
    "eighths of an octave": octaves(8),
    "every length its own": lambda length: Bucket([length]),
}


def costs(model: str) -> Callable[[int, int], float]:
    """Seconds of a run by rows and length, from a grid of measured ones."""
    entry = repository.read(mix.REPOSITORY, model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    file = repository.model_file(entry, max(entry.versions))
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    grid = np.full((len(BATCHES), len(LENGTHS)), np.inf)
    generator = np.random.default_rng(0)
    for _, (i, rows), (j, length) in itertools.product(range(ROUNDS), enumerate(BATCHES), enumerate(LENGTHS)):
        ids = generator.integers(1000, 20000, (rows, length))
        start = time.thread_time()
        session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        grid[i, j] = min(grid[i, j], (time.thread_time() - start) / rows)

    def cost(rows: int, length: int) -> float:
        by_rows = [np.interp(length, LENGTHS, row) for row in grid]
        return rows * float(np.interp(rows, BATCHES, by_rows))

    return cost


def play(
    config: ModelConfig, group: Group, cost: Callable[[int, int], float], lengths: Sequence[int], in_flight: int
) -> tuple[float, float, float]:
    """Rows per second, share of padding, rows per run."""
    queue = Queue(config.max_batch_size, config.dynamic_batching)
    length_of: dict[InferRequest, int] = {}
    coming = iter(lengths)

    def push(count: int) -> None:
        for length in itertools.islice(coming, count):
            request = InferRequest("m", (), group=group(length))
            length_of[request] = length
            queue.push(request, 0)

    push(in_flight)
    free = [0.0] * sum(instances.count for instances in config.instance_groups)
    ended: list[tuple[float, int]] = []
    now = done = runs = computed = 0
    while len(queue) or ended:
        now = max(heapq.heappop(free), 0.0 if len(queue) else ended[0][0])
        while ended and ended[0][0] <= now:
            push(heapq.heappop(ended)[1])
        batch = queue.take(0).batch
        if not batch:
            heapq.heappush(free, now)
            continue
        longest = max(length_of[request] for request in batch)
        end = now + cost(len(batch), longest)
        heapq.heappush(free, end)
        heapq.heappush(ended, (end, len(batch)))
        done, runs, computed = done + len(batch), runs + 1, computed + longest * len(batch)
    return done / max(free), 1 - sum(lengths) / computed, done / runs


def main(kind: str, in_flight: int) -> None:
    lengths = [ids.shape[1] for ids in mix.tokenized(texts.shuffled(kind)[:TEXTS])]
    for model in MODELS:
        published = repository.read(mix.REPOSITORY, model).config
        config = replace(published, max_batch_size=mix.LARGEST, dynamic_batching=DynamicBatching())
        cost = costs(model)
        found = {way: play(config, group, cost, lengths, in_flight) for way, group in WAYS.items()}
        gains = [f"{length}: {cost(1, length) / cost(8, length) * 8:.2f}" for length in (8, 16, 24, 32, 48, 64, 128)]
        print(f"{model}: rows of so many tokens gain from batches of 8 (×) {', '.join(gains)}")
        print(f"{model}, {in_flight} in flight, {len(lengths)} {kind}")
        for way, (rate, waste, rows) in found.items():
            ratio = rate / found["equal shapes"][0]
            print(f"  {way:<26} {ratio:.2f} × equal shapes, {waste:5.1%} padding, {rows:.2f} rows a run", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=mix.IN_FLIGHT)
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"of {', '.join(texts.KINDS)}; all where none is named"
    )
    given = parser.parse_args()
    for name in given.kinds or texts.KINDS:
        main(name, given.in_flight)
