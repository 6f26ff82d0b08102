"""The metrics page tells what the statistics tell, under Triton's names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from server.metrics import HostCollector
from server.statistics import BOUNDS_US
from tests.server.harness import ROW, Running, running, tensor, write_entry

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("repository")
    config = "max_batch_size: 8\ndynamic_batching { }\n"
    write_entry(root, "m", config=config, behaviour={"fail_on": 13.0})
    with running(root) as found:
        yield found


def scrape(served: Running) -> Samples:
    with urlopen(f"http://127.0.0.1:{served.server.metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted({"model": "m", "version": "1", **labels}.items()))]


def test_counters_tell_the_truth(served: Running) -> None:
    before = scrape(served)
    with triton.InferenceServerClient(served.url) as client:
        for rows in (1, 2, 3):
            client.infer("m", [tensor(np.ones((rows, 4)))])
        for bad in (np.full((1, 4), 13.0), np.ones((9, 4))):
            with pytest.raises(InferenceServerException):
                client.infer("m", [tensor(bad)])
        with pytest.raises(InferenceServerException):
            client.infer("nobody", [tensor(ROW)])
        stats = client.get_inference_statistics("m").model_stats[0]
    after = scrape(served)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("nv_inference_request_success") == 3
    assert grown("nv_inference_count") == 6
    assert grown("nv_inference_exec_count") == 3
    assert grown("nv_inference_request_failure", reason="BACKEND") == 1
    assert grown("nv_inference_request_failure", reason="OTHER") == 1
    assert grown("nv_inference_request_failure", reason="REJECTED") == 0
    assert grown("demiglace_request_duration_seconds_count") == 3
    assert value(after, "nv_inference_pending_request_count") == 0
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        duration = getattr(stats.inference_stats, part).ns // 1000
        assert value(after, f"nv_inference_{part}_duration_us") == duration
    assert value(after, "nv_inference_request_duration_us") == stats.inference_stats.success.ns // 1000


def test_histograms_are_cumulative_and_end_with_all(served: Running) -> None:
    with triton.InferenceServerClient(served.url) as client:
        client.infer("m", [tensor(ROW)])
    samples = scrape(served)
    for name in ("demiglace_request_duration_seconds", "demiglace_queue_duration_seconds"):
        buckets = {dict(labels)["le"]: v for (n, labels), v in samples.items() if n == f"{name}_bucket"}
        counts = [buckets[bound] for bound in sorted(buckets, key=float)]
        assert len(counts) == len(BOUNDS_US) + 1
        assert counts == sorted(counts)
        assert counts[-1] == value(samples, f"{name}_count") > 0


def test_what_clients_ask_for_makes_no_series(served: Running) -> None:
    before = set(scrape(served))
    with triton.InferenceServerClient(served.url) as client:
        for number in range(200):
            with pytest.raises(InferenceServerException):
                client.infer(f"nobody{number}", [tensor(ROW)])
    after = scrape(served)
    assert set(after) == before
    labels = {key for _, pairs in after for key, _ in pairs}
    assert labels == {"model", "version", "reason", "le"}


def test_the_host_s_memory_and_processors_are_shown_where_proc_has_them(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 40 kB\n")
    (tmp_path / "stat").write_text("cpu  50 0 0 50 0 0 0 0 0 0\ncpu0 1\n")
    found = {m.name: m.samples[0].value for m in HostCollector(tmp_path).collect()}
    assert found == {
        "nv_cpu_utilization": 0.5, "nv_cpu_memory_total_bytes": 102400, "nv_cpu_memory_used_bytes": 61440,
    }  # fmt: skip
    assert list(HostCollector(tmp_path / "none").collect()) == []
