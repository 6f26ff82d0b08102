"""A real Triton beside ours: the published entries, unchanged, in both; the same requests, the same answers?

    python -m tests.peers.triton [--repository model_repo]

Where Triton comes from, and which part of it is not its own, stands in `triton_server.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.children import ROOT, started_server
from tests.peers import triton_server


def inputs_for(metadata: object, rows: int, length: int, seed: int) -> list[triton.InferInput]:
    rng = np.random.default_rng(seed)
    inputs = []
    for tensor in metadata.inputs:  # type: ignore[attr-defined]
        free = [length if d == -1 else d for d in tensor.shape]
        shape = [rows, *free[1:]] if tensor.shape[0] == -1 else free
        if tensor.datatype.startswith("INT"):
            high = 2 if "mask" in tensor.name else 20000
            array = rng.integers(1, high, shape).astype(tensor.datatype.lower())
        else:
            array = rng.standard_normal(shape).astype(np.float32)
        item = triton.InferInput(tensor.name, shape, tensor.datatype)
        item.set_data_from_numpy(array)
        inputs.append(item)
    return inputs


def compare(name: str, left: triton.InferenceServerClient, right: triton.InferenceServerClient) -> list[str]:
    """Differences between two servers for one model, in words."""
    wrong = []
    metadata = left.get_model_metadata(name)
    for what in ("name", "versions", "platform", "inputs", "outputs"):
        a, b = str(getattr(metadata, what)), str(getattr(right.get_model_metadata(name), what))
        if a != b:
            wrong.append(f"metadata.{what}: {a!r} against {b!r}")
    for seed, (rows, length) in enumerate([(1, 16), (1, 128), (2, 40), (4, 7)]):
        inputs = inputs_for(metadata, rows, length, seed)
        answers = [client.infer(name, inputs, request_id=str(seed)) for client in (left, right)]
        for tensor in metadata.outputs:
            a, b = (answer.as_numpy(tensor.name) for answer in answers)
            if a.dtype != b.dtype or a.shape != b.shape or not np.allclose(a, b, rtol=1e-4, atol=1e-5):
                wrong.append(f"{tensor.name} of {rows} x {length}: largest difference {np.abs(a - b).max()}")
    for bad, exact in bad_requests(metadata):
        texts = []
        for client in (left, right):
            try:
                client.infer(name, bad, request_id="bad")
                texts.append("accepted")
            except InferenceServerException as error:
                texts.append(f"{error.status()}: {error.message()}" if exact else error.status())
        if texts[0] != texts[1]:
            wrong.append(f"error text:\n    {texts[0]}\n    {texts[1]}")
    return wrong


def bad_requests(metadata: object) -> Iterator[tuple[list[triton.InferInput], bool]]:
    """Requests to refuse, and whether the texts must be equal, not only the codes."""
    good = inputs_for(metadata, 1, 16, 0)
    if len(good) > 1:
        yield good[:1], True
    # Triton's text lists the names in the order of a hash table and ends "missing required input(s) ]": not copied.
    nobody = triton.InferInput("nobody", [1, 1], "FP32").set_data_from_numpy(np.ones((1, 1), np.float32))
    yield [*good, nobody], False
    yield [*good[:-1], nobody], False
    first = metadata.inputs[0]  # type: ignore[attr-defined]
    wrong_type = triton.InferInput(first.name, [1, 16], "FP64")
    yield [wrong_type.set_data_from_numpy(np.ones((1, 16))), *good[1:]], True
    dtype = triton_to_np_dtype(first.datatype)
    wrong_rank = triton.InferInput(first.name, [1, 16, 1], first.datatype)
    yield [wrong_rank.set_data_from_numpy(np.ones((1, 16, 1), dtype)), *good[1:]], True
    yield inputs_for(metadata, 1000, 2, 0), True
    unequal = triton.InferInput(first.name, [2, 16], first.datatype)
    # which of the two it names is up to that hash table as well
    yield [unequal.set_data_from_numpy(np.ones((2, 16), dtype)), *good[1:]], False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repo")
    repository = parser.parse_args().repository.resolve()
    wrong = 0
    with (
        started_server(repository) as child,
        triton.InferenceServerClient(child.url) as left,
        triton_server.started(repository) as real,
        triton.InferenceServerClient(real.address) as right,
    ):
        print(f"Triton {real.version} and ours, repository {repository.name}")
        for model in left.get_model_repository_index().models:
            if not right.is_model_ready(model.name):
                differences = [f"Triton does not load it: see {triton_server.LOG}"]
            else:
                differences = compare(model.name, left, right)
            wrong += len(differences)
            verdict = (
                f"{len(differences)} differences" if differences else "loads unchanged; metadata, answers, errors equal"
            )
            print(f"{model.name}: {verdict}")
            for difference in differences:
                print(f"  {difference}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
