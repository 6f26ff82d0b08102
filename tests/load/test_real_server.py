"""The tool against `python -m server`, both really started: what one counts, the other has counted too."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.children import ROOT, ServerChild, load_test, started_server
from tests.load import options

MODEL = """\
[[input]]
name = "x"
datatype = "FP32"
shape = [-1, 4]

[[output]]
name = "y"
datatype = "FP32"
shape = [-1, 4]

[behaviour]
delay_ms = 5
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerChild]:
    folder = tmp_path_factory.mktemp("repository")
    for name in ("one", "two"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.fake").write_text(MODEL)
        (folder / name / "config.pbtxt").write_text('backend: "fake"\nmax_batch_size: 4\ndynamic_batching { }\n')
    with started_server(folder) as child:
        yield child


def counted(url: str, model: str) -> int:
    with triton.InferenceServerClient(url) as client:
        return int(client.get_inference_statistics(model).model_stats[0].inference_stats.success.count)


@pytest.mark.slow
@pytest.mark.parametrize("client", [options.HTTP2, options.GRPCIO])
def test_every_request_of_the_tool_is_one_of_the_server(server: ServerChild, client: str) -> None:
    before = counted(server.url, "one"), counted(server.url, "two")
    targets = ("--client", client, "--target", f"first=one@{server.url}", "--target", f"second=two@{server.url}")
    run = load_test(*targets, "--concurrency-range", "1:4:x4", "--request-count", "40", "--warmup-request-count", "5")
    assert [target.label for target in run.targets] == ["first", "second"]
    for target, model, had in zip(run.targets, ("one", "two"), before, strict=True):
        assert [(level.load, level.succeeded, dict(level.errors)) for level in target.levels] == [
            (1, 40, {}),
            (4, 40, {}),
        ]
        assert counted(server.url, model) - had == 2 * (40 + 5)
        for level in target.levels:
            assert level.latency is not None
            # A run takes 5 ms, whatever the machine.
            assert level.latency.min >= 5
            assert level.stages_note is None
            assert level.stages is not None
            assert level.stages.compute >= 5
            assert min(level.stages.queue, level.stages.collate, level.stages.split, level.stages.wire) >= 0
            # Of the same 40 requests, all of which the count and the latency are of.
            assert level.stages.total == pytest.approx(level.latency.mean)


@pytest.mark.slow
def test_more_than_the_server_can_do_shows_as_latency_and_not_as_fewer_requests(server: ServerChild) -> None:
    """At most 4 rows per 5 ms are 800 per second; at twice that, half of what was due is still waiting at the end."""
    flags = ("--request-rate-range", "1600", "--request-count", "800", "--request-distribution", "poisson")
    level = load_test("-m", "one", "-u", server.url, *flags).levels[0]
    assert (level.requests, level.errors) == (800, {})
    assert level.throughput <= 850
    assert level.latency is not None
    # 800 rows need at least 1 s, the last was due within 0.5 s.
    assert level.latency.max >= 490


@pytest.mark.slow
def test_other_clients_of_the_model_are_told_of(server: ServerChild) -> None:
    over = threading.Event()

    def other() -> None:
        tensor = triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.zeros((1, 4), np.float32))
        with triton.InferenceServerClient(server.url) as client:
            while not over.is_set():
                client.infer("one", [tensor])

    thread = threading.Thread(target=other)
    thread.start()
    try:
        level = load_test("-m", "one", "-u", server.url, "--request-count", "100").levels[0]
    finally:
        over.set()
        thread.join()
    assert level.stages_note is not None
    assert "and the client 100: others use the model too" in level.stages_note


@pytest.mark.slow
def test_a_flame_graph_of_the_server_is_one_flag(server: ServerChild, tmp_path: Path) -> None:
    svg = tmp_path / "flame.svg"
    command = [sys.executable, "-m", "tests.load", "-m", "one", "-u", server.url, "-p", "1000", "--flame", str(svg)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if "the right to trace" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert str(svg) in done.stdout.splitlines()[-1]
    assert "where the time of an average request went" in done.stdout
    drawn = svg.read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert "server/" in drawn
