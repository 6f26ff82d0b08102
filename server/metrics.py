"""Prometheus metrics under Triton's names, and latency histograms, which Triton lacks.

Nothing is counted here: a scrape reads the models' own statistics, so that no request pays for metrics. Labels are
model, version and reason only; all of them are names that the repository gave, never a client's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry

from server.model import Model
from server.statistics import BOUNDS_US, Histogram, ModelStatistics

Models = Callable[[], Iterable[Model]]
_LABELS = ["model", "version"]

_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], int]], ...] = (
    ("nv_inference_request_success", "Number of successful inference requests, all batch sizes",
     lambda s: s.success.count),
    ("nv_inference_count", "Number of inferences performed (rows)", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Number of model executions performed", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Cumulative inference request duration in microseconds",
     lambda s: s.success.ns // 1000),
    ("nv_inference_queue_duration_us", "Cumulative inference queuing duration in microseconds",
     lambda s: s.queue.ns // 1000),
    ("nv_inference_compute_input_duration_us", "Cumulative compute input duration in microseconds",
     lambda s: s.compute_input.ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Cumulative compute inference duration in microseconds",
     lambda s: s.compute_infer.ns // 1000),
    ("nv_inference_compute_output_duration_us", "Cumulative inference compute output duration in microseconds",
     lambda s: s.compute_output.ns // 1000),
    ("demiglace_batch_retries", "Extra executions made to find the guilty request of a failed batch",
     lambda s: s.retries),
    ("demiglace_padding_elements", "Elements that padding added to inputs", lambda s: s.padding_elements),
    ("demiglace_padding_computed_elements", "Elements of inputs that can be padded, padding included",
     lambda s: s.padding_computed),
)  # fmt: skip

_HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelStatistics], Histogram]], ...] = (
    ("demiglace_request_duration_seconds", "From a request's arrival to its answer, successful ones",
     lambda s: s.request_latency),
    ("demiglace_queue_duration_seconds", "From a request's entry into the queue to the start of its batch",
     lambda s: s.queue_latency),
)  # fmt: skip


class _Counter(CounterMetricFamily):
    """A counter under its own name: the library would append `_total`, which Triton's names do not have."""

    def __init__(self, name: str, text: str, labels: list[str]) -> None:
        super().__init__(name, text, labels=labels)
        self._plain = name

    def add(self, labels: list[str], value: float) -> None:
        self.add_metric(labels, value)
        self.samples[-1] = self.samples[-1]._replace(name=self._plain)


class ModelsCollector:
    """What prometheus_client asks at each scrape."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        rows = [(m, [m.name, str(m.version)], m.statistics()) for m in self._models()]
        for name, text, read in _COUNTERS:
            counter = _Counter(name, text, _LABELS)
            for _, labels, stats in rows:
                counter.add(labels, read(stats))
            yield counter
        failures = _Counter("nv_inference_request_failure", "Number of failed inference requests", [*_LABELS, "reason"])
        for _, labels, stats in rows:
            for reason, count in stats.failures.items():
                failures.add([*labels, reason], count)
        yield failures
        waiting = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests waiting in the model's queue", labels=_LABELS
        )
        for model, labels, _ in rows:
            waiting.add_metric(labels, model.waiting())
        yield waiting
        for name, text, pick in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=_LABELS)
            for _, labels, stats in rows:
                found = pick(stats)
                bounds = [*(repr(bound / 1e6) for bound in BOUNDS_US), "+Inf"]
                histogram.add_metric(labels, list(zip(bounds, found.cumulative(), strict=True)), found.sum_ns / 1e9)
            yield histogram


class HostCollector:
    """The host's processors and memory, from /proc; nothing where there is none."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before = (0, 0)

    def collect(self) -> Iterable[Metric]:
        try:
            memory = dict(line.split(":") for line in (self._proc / "meminfo").read_text().splitlines())
            total, available = (int(memory[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
            ticks = [int(t) for t in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, KeyError, ValueError):
            return
        now = (sum(ticks), ticks[3] + ticks[4])  # all, and idle or waiting for disks
        spent, idle = (a - b for a, b in zip(now, self._before, strict=True))
        self._before = now
        yield GaugeMetricFamily(
            "nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0] since the last scrape",
            value=1 - idle / spent if spent else 0.0,
        )  # fmt: skip
        yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", value=total)
        yield GaugeMetricFamily("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", value=total - available)


class MetricsServer:
    """The page on a port of its own."""

    def __init__(self, models: Models) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(ModelsCollector(models))
        self._registry.register(HostCollector())
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self, address: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when it cannot be had."""
        self._server, self._thread = start_http_server(port, address, self._registry)
        return int(self._server.server_port)

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
