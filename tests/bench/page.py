"""`docs/performance.md`, its data and its plots, made of the figures of `make bench` and of the profiles.

    python -m tests.bench.page [reports/bench.json]

The report is copied to `docs/performance/bench.json`; without one, what was copied before is used. Profiles are read
from `docs/performance/profile-*.json`, as `python -m tests.bench.profile --json` writes them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench import figures, goals
from tests.bench.figures import BANDWIDTH, CPU, MEMORY, P50, P99, P999, RATE, ROWS, Figure, number, pick
from tests.bench.pictures import bars_by_load, stages_by_level
from tests.bench.stages import STAGES
from tests.bench.suite import first_hit, growth, identity, peers
from tests.bench.suite.plan import in_flight
from tests.children import ROOT

FOLDER = ROOT / "docs" / "performance"
PAGE = ROOT / "docs" / "performance.md"
TEXT = Path(__file__).with_name("page.md")
OURS = peers.REFERENCE
EVERYBODY = (*peers.TOGETHER, *peers.ALONE)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cell(figure: Figure | None, base: Figure | None = None) -> str:
    if figure is None:
        return "–"
    ratio = f" ({figure.median / base.median:.2f} ×)" if base is not None and base is not figure else ""
    return f"{number(figure.median)}{ratio}"


def by_load(
    found: Sequence[Figure],
    bench: str,
    case: str,
    metric: str,
    subjects: Sequence[str],
    loads: Sequence[str],
    base: str,
) -> str:
    """Subjects downwards, loads across, each with its ratio to the base's."""

    def of(subject: str, load: str) -> Figure | None:
        return pick(found, bench=bench, subject=subject, case=case, load=load, metric=metric)

    rows = [[who, *(cell(of(who, load), of(base, load)) for load in loads)] for who in subjects]
    return grid([f"{case}: {metric}", *loads], [row for row in rows if set(row[1:]) != {"–"}])


def large_models(found: Sequence[Figure]) -> str:
    cases = list(dict.fromkeys(f.case for f in found if f.bench == "peers" and f.case != "tiny"))
    tables = [
        by_load(found, "peers", case, RATE, EVERYBODY, [in_flight(n) for n in peers.LARGE_LOADS], OURS)
        for case in cases
    ]
    return "\n\n".join(tables)


def open_loops(found: Sequence[Figure]) -> str:
    loads = [f"open, {share:.0%} of its best" for share in peers.SHARES]
    rows = []
    for who in EVERYBODY:
        picked = [
            pick(found, bench="peers", subject=who, case="tiny", load=load, metric=metric)
            for load in loads
            for metric in (RATE, P50, P99)
        ]
        if any(picked):
            rows.append([who, *map(cell, picked)])
    head = [f"{load}: {what}" for load in ("50 %", "90 %") for what in ("requests/s", P50, P99)]
    return grid(["tiny, open loop at a share of its own best", *head], rows)


def profile_table(profile: Mapping[str, Any]) -> str:
    levels = profile["levels"]
    rows = []
    for stage in STAGES:
        shares = [level["stages"].get(stage, {"us": 0.0, "share": 0.0}) for level in levels.values()]
        if any(one["us"] for one in shares):
            rows.append([stage, *(f"{one['us']:.0f} ({one['share']:.0%})" for one in shares)])
    rows.append(["**together, µs**", *(f"**{level['cpu_us']:.0f}**" for level in levels.values())])
    rows.append(["requests/s", *(number(level["rate"]) for level in levels.values())])
    rows.append(["cores busy", *(f"{level['cores']:.2f}" for level in levels.values())])
    rows.append(["p50 ms", *(number(level["p50_ms"]) for level in levels.values())])
    return grid(["stage", *(in_flight(int(level)) for level in levels)], rows)


def profiles() -> str:
    """A table for each, the oldest first: `before`, then what came after."""
    found = sorted(FOLDER.glob("profile-*.json"), key=lambda path: (path.stem != "profile-before", path.stem))
    parts = []
    for path in found:
        profile = json.loads(path.read_text())
        name, commit = path.stem.removeprefix("profile-"), profile["machine"]["commit"]
        parts.append(f"### {name.capitalize()} (commit {commit})\n\n{profile_table(profile)}\n\n`{command(profile)}`")
    return "\n\n".join(parts)


def limits(found: Sequence[Figure]) -> str:
    loads = [in_flight(n) for n in (1, 16, 64)]
    echoes = ["ours", "grpcio echo, aio", "grpcio echo, threaded"]
    tables = [by_load(found, "limits", "tiny", metric, echoes, loads, OURS) for metric in (RATE, CPU)]
    bare = pick(found, bench="limits", metric=ROWS)
    if bare is not None:
        tables.append(f"A bare onnxruntime loop makes {number(bare.median)} rows/s at {bare.load} ({bare.note}).")
    return "\n\n".join(tables)


def served(found: Sequence[Figure]) -> str:
    rows = []
    for case in dict.fromkeys(f.case for f in found if f.bench == "served"):
        for load, metric in (("32 in flight", ROWS), ("1 in flight", P50)):
            pair = [
                pick(found, bench="served", subject=who, case=case, load=load, metric=metric)
                for who in ("bare onnxruntime", OURS)
            ]
            rows.append([f"{case}, {load}: {metric}", cell(pair[0]), cell(pair[1], pair[0])])
    return grid(["", "bare onnxruntime", "through the server"], rows)


def bandwidth(found: Sequence[Figure]) -> str:
    clients = [f"{identity.IN_FLIGHT} in flight, {client}" for client in ("grpcio client", "h2load")]
    who = ["ours", "grpcio echo, threaded", "grpcio echo, aio", "Triton"]
    loads = [in_flight(1), in_flight(16)]
    tables = [by_load(found, "identity", identity.LARGE, BANDWIDTH, who, clients, identity.REFERENCE)]
    tables.append(by_load(found, "identity", identity.ONE, RATE, who, loads, identity.REFERENCE))
    return "\n\n".join(tables)


def firsts(found: Sequence[Figure]) -> str:
    rows = []
    for case in dict.fromkeys(f.case for f in found if f.bench == "first-hit"):
        for who, which in ((OURS, "the first 1,000"), (first_hit.NEXT, first_hit.NEXT)):
            pair = [pick(found, bench="first-hit", subject=who, case=case, metric=metric) for metric in (P50, P999)]
            rows.append([case, which, cell(pair[0]), cell(pair[1], pair[0])])
    return grid(["", "requests", P50, P999], rows)


def many_models(found: Sequence[Figure]) -> str:
    subjects = ["1 model", "100 models"]
    return by_load(found, "models-100", "tiny", P50, subjects, [in_flight(1)], subjects[0])


def grown(found: Sequence[Figure]) -> str:
    cases = {
        "models loaded": map(str, growth.MODELS),
        "instances": map(str, growth.INSTANCES),
        "connections": map(str, growth.CONNECTIONS),
        "message size": growth.SIZES,
    }
    parts = []
    for case, subjects in cases.items():
        loads = sorted({f.load for f in found if f.bench == "growth" and f.case == case and f.load}, key=len)
        wanted = [(load, metric) for load in loads for metric in (RATE, P50)] + [("", MEMORY)]
        rows = [
            [
                subject,
                *(
                    cell(pick(found, bench="growth", subject=subject, case=case, load=load, metric=metric))
                    for load, metric in wanted
                ),
            ]
            for subject in subjects
        ]
        parts.append(grid([case, *(f"{load}: {metric}" if load else metric for load, metric in wanted)], rows))
    return "\n\n".join(parts)


def fronts(found: Sequence[Figure]) -> str:
    subjects = list(dict.fromkeys(f.subject for f in found if f.bench == "processes"))
    notes = list(dict.fromkeys(f.note for f in found if f.bench == "processes" and f.note))
    if notes or not subjects:
        return f"Not measured: {'; '.join(notes) or 'not in this run'}."
    return by_load(found, "processes", "tiny", RATE, subjects, [in_flight(n) for n in (1, 16, 64)], subjects[0])


def goal_table(found: Sequence[Figure]) -> str:
    rows = []
    for goal in goals.GOALS:
        figure = goal.compute(found)
        shown = "–" if figure is None else f"{number(figure)} {goal.unit}"
        rows.append(
            [f"{goal.point}. {goal.text}", shown, f"{goal.sign} {goal.limit:g} {goal.unit}", goal.verdict(figure)]
        )
    return grid(["", "figure", "wanted", ""], rows)


def settings(found: Sequence[Figure]) -> str:
    notes = dict.fromkeys((f.subject, f.note) for f in found if f.bench == "peers" and f.note)
    return grid(["server", "version and settings"], notes).replace("---:|", "---|")


def command(report: Mapping[str, Any]) -> str:
    return " ".join(report["command"])


def text(about: Mapping[str, Any], found: Sequence[Figure]) -> str:
    """The page: its text with every place filled."""
    machine = about["machine"]
    loads = [in_flight(n) for n in peers.LOADS]
    parts = {
        "machine": ", ".join(f"{name} {machine[name]}" for name in machine if name not in ("commit", "system")),
        "commit": machine["commit"],
        "command": command(about),
        "disturbance": figures.disturbance(found),
        "rates": by_load(found, "peers", "tiny", RATE, EVERYBODY, loads, OURS),
        "cpu": by_load(found, "peers", "tiny", CPU, EVERYBODY, loads, OURS),
        "open_loops": open_loops(found),
        "large_models": large_models(found),
        "profiles": profiles(),
        "limits": limits(found),
        "served": served(found),
        "bandwidth": bandwidth(found),
        "firsts": firsts(found),
        "many_models": many_models(found),
        "growth": grown(found),
        "fronts": fronts(found),
        "goals": goal_table(found),
        "settings": settings(found),
    }
    filled = TEXT.read_text(encoding="utf-8")
    for name, part in parts.items():
        filled = filled.replace(f"${{{name}}}", part)
    return filled


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    kept = FOLDER / "bench.json"
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], kept)
    about, found = figures.read(kept)
    for name, metric in (("throughput", RATE), ("cpu", CPU)):
        bars_by_load(FOLDER / f"{name}.svg", found, metric, EVERYBODY, [in_flight(n) for n in peers.QUICK_LOADS])
    stages_by_level(FOLDER / "stages.svg", sorted(FOLDER.glob("profile-*.json"), reverse=True))
    PAGE.write_text(text(about, found), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} from {kept.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
