"""Texts of mixed lengths: batches padded within buckets of length against batches of equal shapes, in turn

    python -m tests.bench.mix [titles] [sentences] [--quick]

Two mixes (`texts.py`): film titles, as they are typed into a search field, and tweets and single sentences of newspaper
editorials, product and film reviews; shuffled with seed 0, and of these the first ones; tokenized by the model's own
tokenizer, each a request of one row, 64 in flight. The models: MiniLM as published, its INT8 form, and BERT-Tiny, made
on the spot; all with batches of up to 16, of whatever is waiting. One server holds each
model twice: with its declaration of padding, and with `demiglace.padding` set to `none`. Every answer is compared with
what a bare onnxruntime session gives for that text alone. Waste is padded tokens over all tokens run; that of padding
in arrival order is reckoned for batches of neighbours. What a row costs the server in processor time is shown beside
the rate: it says the same on a host that has other work.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from tokenizers import Tokenizer

from compressor.zoo import minilm
from protos import card, repository
from protos.model_config import DynamicBatching
from protos.padding import KEY, NONE
from protos.repository import Entry
from protos.wire import service
from server.batching.padding import join, longest_of
from tests.bench import small_text, texts
from tests.bench.figures import ROWS, Figure, in_turn
from tests.bench.mix_client import framed, send
from tests.bench.suite.plan import Plan
from tests.children import ROOT, ServerChild, started_server

REPOSITORY = ROOT / "model_repo"
MODELS = ("minilm", "minilm-int8", small_text.NAME)
LARGEST = 16
"""Rows of a batch, for every model and both ways: short texts gain from more than the eight that are published."""
PADDED, EQUAL = "padded", "equal shapes"
REFERENCE = EQUAL
OUTPUT = "sentence_embedding"
IN_FLIGHT = 64
LONGEST = 256
"""Tokens; what sentence-transformers cuts texts for this model at. The longest text here has 203."""
GOAL, WASTE_GOAL = 1.5, 0.5

Array = np.ndarray[Any, Any]


@dataclass
class Turn:
    """All texts once."""

    rate: float
    client_cores: float
    server_cores: float
    """Processor seconds per second."""
    worst: float
    """The largest difference of an element from the lone answer."""


@dataclass
class Mix:
    """One model, both ways."""

    model: str
    tolerance: float
    limit: float
    """What a bare loop gains from batches."""
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    rows_per_run: dict[str, float] = field(default_factory=dict)
    waste: float | None = None
    """None: the server counted nothing."""
    arrival_waste: float = 0.0

    def rate(self, way: str) -> float:
        return statistics.median(turn.rate for turn in self.turns[way])

    def row_ms(self, way: str) -> float:
        """Processor time of the server for a row."""
        return statistics.median(turn.server_cores / turn.rate for turn in self.turns[way]) * 1e3

    @property
    def ratio(self) -> float:
        return self.rate(PADDED) / self.rate(EQUAL)

    def worst(self, way: str) -> float:
        return max(turn.worst for turn in self.turns[way])


def tokenized(chosen: Sequence[str]) -> list[Array]:
    tokenizer = Tokenizer.from_file(str(minilm.folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return [np.array([encoding.ids], np.int64) for encoding in tokenizer.encode_batch(list(chosen))]


def bare(entry: Entry, tokens: Sequence[Array], largest: int) -> tuple[list[Array], float]:
    """What the model gives for each text by itself, without a server, and how many times as fast the texts go in
    batches of `largest`, sorted by length: the model has no more to gain. By processor time of one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    file = repository.model_file(entry, max(entry.versions))
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    spent = {1: 0.0, largest: 0.0}

    def run(arrays: Sequence[Array], rows: int) -> Array:
        ids = np.zeros((len(arrays), longest_of(arrays)[0]), np.int64)
        mask = np.zeros_like(ids)
        join(arrays, np.array(0), ids)
        join([np.ones_like(array) for array in arrays], np.array(0), mask)
        start = time.thread_time()
        answer: Array = session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})[0]
        spent[rows] += time.thread_time() - start
        return answer

    answers = [run([array], 1) for array in tokens]
    ordered = sorted(tokens, key=np.size)
    for i in range(0, len(ordered), largest):
        run(ordered[i : i + largest], largest)
    return answers, spent[1] / spent[largest]


def message(model: str, ids: Array) -> bytes:
    request = service.ModelInferRequest(model_name=model)
    for name in ("input_ids", "attention_mask"):
        request.inputs.add(name=name, datatype="INT64", shape=ids.shape)
    request.raw_input_contents.extend([ids.tobytes(), np.ones_like(ids).tobytes()])
    return request.SerializeToString()


def arrival_waste(lengths: Sequence[int], rows: int) -> float:
    """Of batches of `rows` neighbours, each padded to its longest."""
    batches = [lengths[i : i + rows] for i in range(0, len(lengths), rows)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def counters(child: ServerChild, model: str) -> dict[str, float]:
    """The metrics of a model, by name."""
    with urllib.request.urlopen(f"http://{child.address('metrics')}/metrics") as page:
        lines = page.read().decode().splitlines()
    split = (line.rpartition(" ") for line in lines if f'model="{model}"' in line)
    return {name.partition("{")[0]: float(value) for name, _, value in split}


def _write(root: Path, entry: Entry) -> dict[str, str]:
    """The model twice below `root`; their names by way."""
    file = repository.model_file(entry, max(entry.versions))
    if KEY not in entry.config.parameters:
        raise RuntimeError(f"{entry.path} declares no padding: make it anew with its recipe")
    names = {PADDED: f"{entry.name}-padded", EQUAL: f"{entry.name}-equal"}
    batches = replace(entry.config, max_batch_size=LARGEST, dynamic_batching=DynamicBatching())
    changes = {PADDED: {}, EQUAL: {KEY: NONE}}
    for way, name in names.items():
        parameters = {**entry.config.parameters, **changes[way]}
        repository.write(root, replace(batches, name=name, parameters=parameters), {file.name: file})
    return names


def measure(entry: Entry, tokens: Sequence[Array], repeats: int) -> Mix:
    proof = card.read(entry.version_path(max(entry.versions)))
    assert proof is not None
    expected, limit = bare(entry, tokens, LARGEST)
    mix = Mix(entry.name, proof.output_error[OUTPUT]["padding_tolerance"], limit)
    mix.arrival_waste = arrival_waste([ids.shape[1] for ids in tokens], LARGEST)
    with tempfile.TemporaryDirectory() as folder:
        names = _write(Path(folder) / "models", entry)
        files = {}
        for way, name in names.items():
            files[way] = Path(folder) / f"{name}.requests"
            files[way].write_bytes(framed(message(name, ids) for ids in tokens))
        with started_server(Path(folder) / "models") as child:
            server = psutil.Process(child.process.pid)

            def turn(way: str) -> Turn:
                before = sum(server.cpu_times()[:2])
                sent = send(child.url, IN_FLIGHT, files[way], Path(folder) / "answers")
                used = (sum(server.cpu_times()[:2]) - before) / sent.seconds
                worst = max(map(_distance, sent.answers, expected))
                return Turn(len(tokens) / sent.seconds, sent.cores, used, worst)

            turn(PADDED), turn(EQUAL)  # every length's first run
            start = {way: counters(child, name) for way, name in names.items()}
            mix.turns = in_turn({PADDED: lambda: turn(PADDED), EQUAL: lambda: turn(EQUAL)}, repeats)
            for way, name in names.items():
                now = counters(child, name)
                done = {key: value - start[way].get(key, 0) for key, value in now.items()}
                mix.rows_per_run[way] = done["nv_inference_count"] / done["nv_inference_exec_count"]
                if way == PADDED and done.get("demiglace_padding_computed_elements"):
                    mix.waste = done["demiglace_padding_elements"] / done["demiglace_padding_computed_elements"]
    return mix


def _distance(answer: bytes, expected: Array) -> float:
    raw = service.ModelInferResponse.FromString(answer).raw_output_contents[0]
    return float(np.abs(np.frombuffer(raw, np.float32) - expected.reshape(-1)).max())


def bench_mix(kind: str, quick: bool) -> dict[str, Any]:
    """Measure all models on one kind of texts and print; the figures by model."""
    everything = texts.shuffled(kind)
    tokens = tokenized(everything[: 512 if quick else 2048])
    lengths = np.array([ids.shape[1] for ids in tokens])
    spread = ", ".join(f"{q} %: {np.percentile(lengths, q):.0f}" for q in (10, 25, 50, 75, 90, 100))
    print(f"{kind}: {len(tokens)} of {len(everything)} texts; tokens at {spread}; {IN_FLIGHT} in flight", flush=True)
    found: dict[str, Any] = {"lengths": lengths.tolist()}
    with tempfile.TemporaryDirectory() as folder:
        small = small_text.publish(Path(folder))
        for model in MODELS:
            entry = repository.read(small if model == small_text.NAME else REPOSITORY, model)
            mix = measure(entry, tokens, 2 if quick else 5)
            _show(mix)
            found[model] = {**asdict(mix), "ratio": mix.ratio}
    return found


def _show(mix: Mix) -> None:
    cost = mix.row_ms(EQUAL) / mix.row_ms(PADDED)
    print(f"{mix.model}: {mix.ratio:.2f} × the throughput of equal shapes (wanted: {GOAL} ×), {cost:.2f} × per core")
    print(f"  a bare loop over the texts sorted by length gains {mix.limit:.2f} × from batches")
    for way in (EQUAL, PADDED):
        turns = mix.turns[way]
        off = max(abs(turn.rate / mix.rate(way) - 1) for turn in turns)
        client = statistics.median(turn.client_cores for turn in turns)
        server = statistics.median(turn.server_cores for turn in turns)
        print(
            f"  {way}: {mix.rate(way):.1f} rows/s ±{off:.0%}, {mix.rows_per_run[way]:.2f} rows a run; "
            f"{mix.row_ms(way):.2f} ms of processor time a row, server {server:.2f} cores, client {client:.2f}; "
            f"{mix.worst(way):.2g} from the lone answers at most"
        )
    verdict = "kept" if mix.worst(PADDED) <= mix.tolerance else "BROKEN"
    print(f"  tolerance of padded answers, from the card: {mix.tolerance:.2g}: {verdict}")
    if mix.waste is None:
        print(f"  padding waste: not counted by this server; in arrival order it is {mix.arrival_waste:.1%}")
    else:
        part = mix.waste / mix.arrival_waste
        print(
            f"  padding waste {mix.waste:.1%}; in arrival order it is {mix.arrival_waste:.1%}: {part:.2f} of it "
            f"(wanted: < {WASTE_GOAL})",
            flush=True,
        )


def run(plan: Plan) -> list[Figure]:
    """As a benchmark among the others."""
    return [figure for kind in texts.KINDS for figure in _figures(kind, bench_mix(kind, plan.quick))]


def _figures(kind: str, found: dict[str, Any]) -> list[Figure]:
    figures = []
    for model in MODELS:
        one = found[model]
        waste = "not counted" if one["waste"] is None else f"{one['waste']:.1%}"
        worst = max(turn["worst"] for turn in one["turns"][PADDED])
        note = (
            f"{model}: batches give a bare loop over sorted texts {one['limit']:.2f} ×; padding waste {waste}, in "
            f"arrival order {one['arrival_waste']:.1%}; answers at most {worst:.2g} from the lone ones, tolerance "
            f"{one['tolerance']:.2g}"
        )
        for way in (EQUAL, PADDED):
            rates = tuple(turn["rate"] for turn in one["turns"][way])
            figures.append(Figure("mix", way, f"{model}, {kind}", f"{IN_FLIGHT} in flight", ROWS, rates, note))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer texts and repeats")
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(texts.KINDS)}; all where none is named")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(texts.KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed are {', '.join(texts.KINDS)}")
    try:
        for name in given.kinds or texts.KINDS:
            bench_mix(name, given.quick)
    except texts.Missing as error:
        parser.error(str(error))
