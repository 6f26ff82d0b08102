"""the same models in other servers, each at the settings it is best with: Triton, MLServer, LitServe, Ray Serve

All but Ray Serve are up at once and take turns; Ray's own processes keep a tenth of a core busy without any request,
so it is measured by itself. Ours has four models loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.bench import h2load, ours, workloads
from tests.bench.figures import P50, P99, RATE, Figure, of_loads, pick
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan, in_flight
from tests.peers import litserve, mlserver, ray_serve, triton_server
from tests.peers.peer import NotInstalled, Question, Running

REFERENCE = ours.NAME
LOADS = (1, 4, 16, 64)
QUICK_LOADS = (1, 16, 64)
LARGE_LOADS = (1, 16)
LENGTHS = (32, 128)
SHARES = (0.5, 0.9)
TOLERANCE = 2e-2
"""Between servers: INT8 rounds differently by which rows share a batch, and these ask one at a time."""

Start = Callable[[Path], AbstractContextManager[Running]]
TOGETHER: Mapping[str, Start] = {
    ours.NAME: ours.started,
    "Triton": triton_server.started,
    "MLServer": mlserver.started,
    "LitServe": litserve.started,
}
ALONE: Mapping[str, Start] = {"Ray Serve": ray_serve.started}


def run(plan: Plan) -> list[Figure]:
    found: list[Figure] = []
    small = workloads.write_tinies(plan.folder / "small", 1)
    several = workloads.write_tinies(plan.folder / "several", 4)
    questions = {"tiny": workloads.tiny()}
    for group in (TOGETHER, ALONE):
        with _up(group, small, several, found) as servers:
            _compare(plan, servers, questions, QUICK_LOADS if plan.quick else LOADS, found)
            _open_loops(plan, servers, questions["tiny"], found)
    large = plan.folder / "large"
    models = (workloads.INT8,) if plan.quick else (workloads.FP32, workloads.INT8)
    for model in models:
        shutil.copytree(workloads.REPOSITORY / model, large / model)
    lengths = LENGTHS[-1:] if plan.quick else LENGTHS
    questions = {f"{m}, {length} tokens": workloads.minilm(m, length) for m in models for length in lengths}
    for group in (TOGETHER,) if plan.quick else (TOGETHER, ALONE):
        with _up(group, large, large, []) as servers:
            _compare(plan.at_most(2), servers, questions, LARGE_LOADS, found)
    return found


@contextmanager
def _up(group: Mapping[str, Start], models: Path, of_ours: Path, found: list[Figure]) -> Iterator[dict[str, Running]]:
    """Those that can be had; who cannot is told of in an empty figure."""
    with ExitStack() as stack:
        servers = {}
        for name, start in group.items():
            try:
                servers[name] = stack.enter_context(start(of_ours if name == ours.NAME else models))
            except NotInstalled as error:
                print(f"  {name}: not installed: {error}", flush=True)
                found.append(Figure("peers", name, "tiny", in_flight(LOADS[0]), RATE, (), f"not installed: {error}"))
        yield servers


def _compare(
    plan: Plan,
    servers: Mapping[str, Running],
    questions: Mapping[str, Question],
    loads: tuple[int, ...],
    found: list[Figure],
) -> None:
    for case, question in questions.items():
        _same_answers(servers, question)
        for load in loads:
            asked = {name: (server, question) for name, server in servers.items()}
            figures = plan.compare("peers", case, Load(load), asked)
            if case == "tiny" and load == loads[0]:
                figures = [_with_settings(figure, servers[figure.subject]) for figure in figures]
            found += figures


def _with_settings(figure: Figure, server: Running) -> Figure:
    return replace(figure, note=f"{server.version}: {server.settings}") if figure.metric == RATE else figure


def _same_answers(servers: Mapping[str, Running], question: Question) -> None:
    answers = {name: server.ask(question) for name, server in servers.items()}
    first = next(iter(answers.values()))
    for name, answer in answers.items():
        if answer.shape != first.shape or not np.allclose(answer, first, rtol=TOLERANCE, atol=TOLERANCE):
            raise RuntimeError(f"{name} answers {question.model} otherwise than {next(iter(answers))} does")


def _open_loops(plan: Plan, servers: Mapping[str, Running], question: Question, found: list[Figure]) -> None:
    """Latency when requests come at half and at nine tenths of the most that this server was seen to answer."""
    for name, server in servers.items():
        rates = [pick(found, bench="peers", subject=name, case="tiny", load=in_flight(n), metric=RATE) for n in LOADS]
        best = max(rate.median for rate in rates if rate is not None)
        prepared = h2load.prepared(plan.folder, server, question)
        for share in SHARES:
            # over HTTP/1.1 that is one connection for each, and all connections send at the same moment
            load = Load(16 if server.http else 1024, rate=share * best)
            run = h2load.measure(prepared, load, plan.seconds, server.process)
            found += of_loads("peers", name, "tiny", f"open, {share:.0%} of its best", [run], (RATE, P50, P99))
