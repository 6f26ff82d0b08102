"""The `demiglace` command: one verb per program, found by module name and started without being imported here.

`inspect` is the one verb that lives here, since it needs nothing but the contract: entries, configurations, cards.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protos import card, config_text, repository
from protos.card import Card, CardError
from protos.model_config import ConfigError, ModelConfig
from protos.repository import Entry, RepositoryError


@dataclass(frozen=True, slots=True)
class Program:
    module: str
    help: str
    needs: str
    """A package that only this program's extra brings."""
    extra: str


PROGRAMS = {
    "compress": Program("compressor", "run one compression job: demiglace compress RECIPE", "torch", "compress"),
    "serve": Program("server", "serve a model repository over gRPC", "onnxruntime", "cpu"),
    "load": Program("tests.load", "load-test a server of the protocol", "tritonclient", "load"),
}
INSPECT = "show the entries of a model repository, their configurations and cards"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: the program's own; 2 for a verb that is unknown or not installed."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    verb, rest = given[0], given[1:]
    if verb == "inspect":
        return inspect(rest)
    program = PROGRAMS.get(verb)
    if program is None:
        return _fail(f"'{verb}' is no verb; there are {', '.join((*PROGRAMS, 'inspect'))}")
    for package in (program.needs, program.module):
        if not _installed(package):
            return _fail(f"{verb}: package '{package}' is missing: pip install 'demiglace[{program.extra}]'")
    sys.argv = [f"demiglace {verb}", *rest]
    runpy.run_module(program.module, run_name="__main__", alter_sys=False)
    return 0


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that a dotted name lies in
        return False


def usage() -> str:
    verbs = {**{verb: program.help for verb, program in PROGRAMS.items()}, "inspect": INSPECT}
    lines = [f"  {verb:<10} {text}" for verb, text in verbs.items()]
    return "\n".join(["usage: demiglace VERB ...", "", *lines, "", "demiglace VERB --help tells more."])


def _fail(text: str) -> int:
    print(f"demiglace: {text}", file=sys.stderr)
    return 2


# --- inspect --------------------------------------------------------------------------------------------------------


def inspect(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="demiglace inspect", description=INSPECT)
    parser.add_argument("repository", type=Path, help="folder of the model repository")
    parser.add_argument("name", nargs="?", help="one entry, in full; all of them in a table without it")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    try:
        names = (options.name,) if options.name else repository.names(options.repository)
        entries = [_Shown.read(options.repository, name) for name in names]
    except RepositoryError as error:
        return _fail(f"inspect: {error}")
    if options.name and entries[0].problem:
        return _fail(f"inspect: {entries[0].problem}")
    if options.json:
        print(json.dumps([shown.as_json() for shown in entries], indent=1))
    elif options.name:
        _show_one(entries[0])
    else:
        _show_all(entries)
    return 0


@dataclass(frozen=True, slots=True)
class _Shown:
    name: str
    entry: Entry | None
    cards: dict[int, Card | None]
    problem: str = ""
    """Why the entry or one of its cards cannot be read; the others are shown all the same."""

    @classmethod
    def read(cls, root: Path, name: str) -> _Shown:
        try:
            entry = repository.read(root, name)
            return cls(name, entry, {version: card.read(entry.version_path(version)) for version in entry.versions})
        except (RepositoryError, ConfigError, CardError) as error:
            return cls(name, None, {}, str(error))

    def as_json(self) -> dict[str, Any]:
        if self.entry is None:
            return {"name": self.name, "problem": self.problem}
        return {
            "name": self.name,
            "versions": list(self.entry.versions),
            "config": json.loads(config_text.to_json(self.entry.config)),
            "cards": {str(v): json.loads(card.dumps(c)) for v, c in self.cards.items() if c is not None},
        }


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def _show_all(entries: list[_Shown]) -> None:
    table = Table("entry", "version", "backend", "max batch", "size", "done to it", "metrics", box=box.SIMPLE)
    for shown in entries:
        if shown.entry is None:
            _row(table, shown.name, "-", "", "", "", shown.problem, "")
            continue
        config = shown.entry.config
        for version, proof in shown.cards.items() or {0: None}.items():
            summary = _summary(proof) if proof else ("", "no card", "")
            batch = str(config.max_batch_size)
            _row(table, shown.name, str(version or "-"), config.backend or config.platform, batch, *summary)
    _console().print(table)


def _row(table: Table, *cells: str) -> None:
    """As plain text: names and parameters come from files and may look like markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _summary(proof: Card) -> tuple[str, str, str]:
    size = f"{proof.bytes / 1e6:.1f} MB ({proof.bytes / max(proof.baseline_bytes, 1):.0%})"
    metrics = ", ".join(f"{m.name} {m.result:.4f}" for m in proof.metrics)
    return size, " → ".join(step.name for step in proof.trail), metrics


def _show_one(shown: _Shown) -> None:
    assert shown.entry is not None
    console = _console()
    console.print(Text.assemble((shown.name, "bold"), "  ", _io(shown.entry.config)))
    console.print(Text(config_text.dump(shown.entry.config)))
    for version, proof in shown.cards.items():
        console.print(Text.assemble((f"version {version}", "bold"), "" if proof else ": no card"))
        if proof:
            _show_card(console, proof)


def _io(config: ModelConfig) -> str:
    sides = [
        ", ".join(f"{t.name}: {t.datatype.name}{list(t.dims)}" for t in s) for s in (config.inputs, config.outputs)
    ]
    return " -> ".join(sides)


def _show_card(console: Console, proof: Card) -> None:
    size = f"{proof.baseline_bytes / 1e6:.1f} MB to {proof.bytes / 1e6:.1f} MB"
    console.print(Text(f"made {proof.created} on {proof.host.get('cpu', 'an unknown host')}; {size}"))
    steps = Table("pass", "parameters", "effect", "seconds", box=box.SIMPLE)
    for step in proof.trail:
        _row(steps, step.name, _pairs(step.parameters), _pairs(step.effect), f"{step.seconds:.1f}")
    results = Table("measured", "original", "result", "on", box=box.SIMPLE)
    for metric in proof.metrics:
        on = f"{metric.samples} samples of {metric.data}"
        _row(results, metric.name, f"{metric.baseline:.4f}", f"{metric.result:.4f}", on)
    for one in proof.latency:
        on = f"batch {one.batch}, served, one request in flight"
        _row(results, "latency p50", f"{one.baseline_p50:.2f} ms", f"{one.p50:.2f} ms", on)
        _row(results, "latency p99", f"{one.baseline_p99:.2f} ms", f"{one.p99:.2f} ms", on)
    for name, error in proof.output_error.items():
        _row(results, f"error of {name}", "", _pairs({k: f"{v:.3g}" for k, v in error.items()}), "")
    files = Table("file", "SHA-256", box=box.SIMPLE)
    for name, digest in proof.files.items():
        _row(files, name, digest)
    for table in (steps, results, files):
        if table.row_count:
            console.print(table)


def _pairs(mapping: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in mapping.items())


if __name__ == "__main__":
    sys.exit(main())
