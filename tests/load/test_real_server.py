"""The tool against `python -m server`, both really started: what one counts, the other has counted too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton

from tests.children import ServerChild, load_test, started_server

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
def test_every_request_of_the_tool_is_one_of_the_server(server: ServerChild) -> None:
    before = counted(server.url, "one"), counted(server.url, "two")
    targets = ("--target", f"first=one@{server.url}", "--target", f"second=two@{server.url}")
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
