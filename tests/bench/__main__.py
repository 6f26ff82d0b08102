"""Speed and memory as ratios within one run: `make bench`, or `python -m tests.bench NAME ...`.

- served: rows per second through the server (batch-1 requests, 32 in flight, 128 tokens) against what a bare
  onnxruntime loop reaches in a process of its own, in the best way (callers, threads, batch) of those tried; the two
  take turns, the medians are compared.
- memory: the server with four instances of a model against the same with one, after both have worked.
- batches: the same with other preferred batch sizes, in turn: which of them the recipe should ask for.
- front: requests per second of a tiny model, where the front end is all the cost.

Nothing here passes or fails: the figures are the result. They are written to `reports/bench.json` too.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from protos import config_text, repository
from protos.model_config import DynamicBatching, InstanceGroup
from tests.bench.tiny import write_tiny
from tests.children import ROOT, load_test, started_server

REPOSITORY = ROOT / "model_repo"
RECIPE = ROOT / "compressor" / "recipes" / "minilm-dynamic.toml"
MODELS = ("minilm", "minilm-int8")
SHAPES = ("input_ids:128", "attention_mask:128")
SHAPE_FLAGS = tuple(flag for shape in SHAPES for flag in ("--shape", shape))
IN_FLIGHT = 32
ROUNDS = 5
SECONDS = 12.0


def bare(model: str, way: str, seconds: float) -> dict[str, float]:
    """Rows per second of a bare loop, by the way it uses the cores: callers x threads x batch."""
    entry = repository.read(REPOSITORY, model)
    file = repository.model_file(entry, max(entry.versions))
    command = [sys.executable, "-m", "tests.bench.bare_loop", str(file), str(seconds), way, *SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def served(model: str, url: str) -> tuple[float, float]:
    """Rows per second through the server, and the cores that the client took of it."""
    flags = ("--concurrency-range", str(IN_FLIGHT), "--measurement-interval", str(int(SECONDS * 1000)))
    level = load_test("-m", model, "-u", url, *flags, "--warmup-request-count", "64", *SHAPE_FLAGS).levels[0]
    if level.errors:
        raise RuntimeError(f"{model}: {level.errors}")
    return level.inferences, level.client.cores_used


def bench_served() -> dict[str, object]:
    result: dict[str, object] = {}
    for model in MODELS:
        tried = bare(model, "all", 2.0)
        best = max(tried, key=tried.__getitem__)
        print(f"  {model}: of {len(tried)} ways, a bare loop is best at {best} (callers x threads x batch)", flush=True)
        bares, through, cores = [], [], []
        with started_server(REPOSITORY, "--model-control-mode", "explicit", "--load-model", model) as child:
            for _ in range(ROUNDS):
                bares.append(bare(model, best, SECONDS)[best])
                rate, used = served(model, child.url)
                through.append(rate)
                cores.append(used)
                print(f"  bare {bares[-1]:.1f} rows/s, served {rate:.1f} (client {used:.2f} cores)", flush=True)
        ratio = statistics.median(through) / statistics.median(bares)
        medians = f"served {statistics.median(through):.1f} rows/s, bare {statistics.median(bares):.1f}"
        print(f"{model}: {medians}: {ratio:.1%}", flush=True)
        result[model] = {"best": best, "bare": bares, "served": through, "client_cores": cores, "ratio": ratio}
    return result


def resident(folder: Path, model: str, count: int) -> int:
    """Resident bytes of a server with `count` instances of a model, after it has worked with all of them."""
    source = repository.read(REPOSITORY, model)
    target = folder / str(count) / model
    target.mkdir(parents=True)
    shutil.copytree(source.version_path(max(source.versions)), target / str(max(source.versions)))
    config = replace(source.config, instance_groups=(InstanceGroup(kind="KIND_CPU", count=count),))
    (target / repository.CONFIG_FILENAME).write_text(config_text.dump(config))
    with started_server(folder / str(count)) as child:
        flags = ("--concurrency-range", "8", "--measurement-interval", "4000", "--warmup-request-count", "32")
        load_test("-m", model, "-u", child.url, *flags, *SHAPE_FLAGS)
        return int(psutil.Process(child.process.pid).memory_info().rss)


def bench_memory() -> dict[str, object]:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            one, four = (resident(Path(folder) / model, model, count) for count in (1, 4))
            print(f"{model}: 1 instance {one / 2**20:.0f} MiB, 4 instances {four / 2**20:.0f} MiB: {four / one:.2f} x")
            result[model] = {"one": one, "four": four, "ratio": four / one}
    return result


def bench_batches() -> dict[str, object]:
    entry = repository.read(REPOSITORY, "minilm-int8")
    file = repository.model_file(entry, max(entry.versions))
    rates: dict[str, list[float]] = {f"batch-{size}": [] for size in (1, 2, 4, 8)}
    with tempfile.TemporaryDirectory() as folder:
        for name in rates:
            batching = DynamicBatching(preferred_batch_size=(int(name.removeprefix("batch-")),))
            config = replace(entry.config, name=name, dynamic_batching=batching)
            repository.write(Path(folder), config, {file.name: file})
        with started_server(Path(folder)) as child:
            flags = ("--concurrency-range", str(IN_FLIGHT), "--measurement-interval", "6000", *SHAPE_FLAGS)
            names = list(rates)
            # each starts a round as often as the others: whoever comes first after the pause between runs is slower
            for _ in range(2 * len(names)):
                names = names[1:] + names[:1]
                targets = [flag for name in names for flag in ("--target", f"{name}@{child.url}")]
                for target in load_test(*targets, *flags, "--warmup-request-count", "40").targets:
                    rates[target.label].append(target.levels[0].inferences)
    for name, found in rates.items():
        print(f"minilm-int8, preferred {name}: {statistics.median(found):.1f} rows/s")
    return dict(rates)


def bench_front() -> dict[str, object]:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(Path(folder))
        with started_server(Path(folder)) as child:
            server = psutil.Process(child.process.pid)
            for in_flight in (1, 16, 64):
                before = sum(server.cpu_times()[:2])
                flags = ("--concurrency-range", str(in_flight), "--measurement-interval", "5000")
                level = load_test("-m", "tiny", "-u", child.url, *flags).levels[0]
                spent = sum(server.cpu_times()[:2]) - before
                each = spent / max(level.requests, 1) * 1e6
                client = f"client {level.client.cores_used:.2f} cores"
                print(f"tiny, {in_flight} in flight: {level.throughput:.0f} req/s, {client}")
                result[str(in_flight)] = {"throughput": level.throughput, "server_us_at_most": each}
    return result


BENCHES: dict[str, Callable[[], dict[str, object]]] = {
    "served": bench_served,
    "memory": bench_memory,
    "batches": bench_batches,
    "front": bench_front,
}


def main() -> int:
    asked = sys.argv[1:] or list(BENCHES)
    if unknown := set(asked) - set(BENCHES):
        print(f"bench: {', '.join(sorted(unknown))}: unknown; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    if not all((REPOSITORY / model).is_dir() for model in MODELS):
        subprocess.run([sys.executable, "-m", "compressor", str(RECIPE)], check=True, cwd=ROOT)
    results = {}
    for name in asked:
        print(f"== {name}", flush=True)
        results[name] = BENCHES[name]()
    reports = ROOT / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
