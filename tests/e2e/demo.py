"""The whole job once, as a user would do it by hand: `make demo`.

Compress a real, trained model by its recipe, serve original and result side by side, ask both through the stock
client, load-test both, print the comparison and what to type next.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from compressor.zoo import minilm
from protos import card, repository
from tests.children import ROOT, load_test, started_server
from tests.load.result import Level

RECIPE = Path("compressor/recipes/minilm-dynamic.toml")
REPOSITORY = ROOT / "model_repo"
ORIGINAL, RESULT = "minilm", "minilm-int8"
QUESTION = "A small model that answers fast."
SENTENCES = (
    "The reduced network replies in no time.",
    "Our server is quick because the network is tiny.",
    "She planted roses along the garden wall.",
)


def compress() -> card.Card:
    subprocess.run([sys.executable, "-m", "compressor", str(RECIPE)], check=True, cwd=ROOT)
    entry = repository.read(REPOSITORY, RESULT)
    proof = card.read(entry.version_path(max(entry.versions)))
    assert proof is not None
    return proof


def embed(client: triton.InferenceServerClient, model: str, texts: tuple[str, ...]) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(minilm.folder() / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(texts))
    inputs = []
    for name, rows in (
        ("input_ids", [e.ids for e in encodings]),
        ("attention_mask", [e.attention_mask for e in encodings]),
    ):
        array = np.array(rows, np.int64)
        inputs.append(triton.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array))
    return client.infer(model, inputs).as_numpy("sentence_embedding")


def predictions(url: str, console: Console) -> None:
    """The same sentences through both models, by the stock client."""
    table = Table(f'"{QUESTION}" is like', "original", "compressed", box=box.SIMPLE)
    with triton.InferenceServerClient(url) as client:
        scores = []
        for model in (ORIGINAL, RESULT):
            vectors = embed(client, model, (QUESTION, *SENTENCES))
            scores.append(vectors[1:] @ vectors[0])
    for sentence, original, result in zip(SENTENCES, *scores, strict=True):
        table.add_row(sentence, f"{original:.3f}", f"{result:.3f}")
    console.print(table)


def load(url: str) -> dict[str, tuple[Level, ...]]:
    """Both models in turn, one request in flight and sixteen."""
    flags = ["--target", f"{ORIGINAL}@{url}", "--target", f"{RESULT}@{url}", "--concurrency-range", "1:16:x16"]
    flags += ["--measurement-interval", "8000", "--warmup-request-count", "32"]
    run = load_test(*flags, "--shape", "input_ids:128", "--shape", "attention_mask:128")
    return {target.label: target.levels for target in run.targets}


def report(proof: card.Card, levels: dict[str, tuple[Level, ...]], console: Console) -> None:
    title = "all-MiniLM-L6-v2, 128 tokens a request, through the server"
    table = Table("", "original", "compressed", "", box=box.SIMPLE, title=title, title_justify="left")
    before, after = proof.baseline_bytes, proof.bytes
    table.add_row("size", f"{before / 1e6:.1f} MB", f"{after / 1e6:.1f} MB", f"{after / before:.1%}")
    for metric in proof.metrics:
        table.add_row(metric.name, f"{metric.baseline:.4f}", f"{metric.result:.4f}", f"{metric.samples} held-out texts")
    for original, result in zip(levels[ORIGINAL], levels[RESULT], strict=True):
        if original.errors or result.errors or original.latency is None or result.latency is None:
            raise SystemExit(f"errors under load: {dict(original.errors)} {dict(result.errors)}")
        table.add_section()
        for name in ("p50", "p90", "p99"):
            a, b = getattr(original.latency, name), getattr(result.latency, name)
            label = f"latency {name}, {original.concurrency} in flight"
            table.add_row(label, f"{a:.1f} ms", f"{b:.1f} ms", f"{a / b:.2f} × as fast")
        a, b = original.inferences, result.inferences
        label = f"throughput, {original.concurrency} in flight"
        table.add_row(label, f"{a:.1f} rows/s", f"{b:.1f} rows/s", f"{b / a:.2f} × as many")
    console.print(table)
    console.print(f"Held-out texts: {minilm.TEXTS}.", highlight=False)


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 100)
    proof = compress()
    with started_server(REPOSITORY) as child:
        for line in child.lines:
            print(line)
        predictions(child.url, console)
        console.print("load test: one request in flight, then sixteen; original and compressed in turn …")
        report(proof, load(child.url), console)
    console.print("Next:")
    console.print("  make serve                                   serve model_repo on port 8001", highlight=False)
    console.print("  make loadtest MODEL=minilm-int8              in a second terminal", highlight=False)
    console.print(
        "  .venv/bin/demiglace inspect model_repo       the cards: what was done, what it cost and gained",
        highlight=False,
    )
    console.print("  make compress RECIPE=your.toml               your own model: see README.md", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
