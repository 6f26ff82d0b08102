"""The `demiglace` command: one verb per program, found by module name and started without being imported here.

`inspect` is the one verb that lives here, since it needs nothing but the contract: entries, configurations, cards.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import runpy
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

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
    if importlib.util.find_spec(program.needs) is None:
        return _fail(f"{verb}: package '{program.needs}' is missing: pip install 'demiglace[{program.extra}]'")
    sys.argv = [f"demiglace {verb}", *rest]
    runpy.run_module(program.module, run_name="__main__", alter_sys=False)
    return 0


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
        entries = [_Shown.read(repository.read(options.repository, name)) for name in names]
    except (RepositoryError, ConfigError, CardError) as error:
        return _fail(f"inspect: {error}")
    if options.json:
        print(json.dumps([shown.as_json() for shown in entries], indent=1))
    elif options.name:
        _show_one(entries[0])
    else:
        _show_all(entries)
    return 0


@dataclass(frozen=True, slots=True)
class _Shown:
    entry: Entry
    cards: dict[int, Card | None]

    @classmethod
    def read(cls, entry: Entry) -> _Shown:
        return cls(entry, {version: card.read(entry.version_path(version)) for version in entry.versions})

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.entry.name,
            "versions": list(self.entry.versions),
            "config": config_text.dump(self.entry.config),
            "cards": {str(v): asdict(c) for v, c in self.cards.items() if c is not None},
        }


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def _show_all(entries: list[_Shown]) -> None:
    table = Table("entry", "version", "backend", "max batch", "size", "done to it", "metrics", box=box.SIMPLE)
    for shown in entries:
        config = shown.entry.config
        for version, proof in shown.cards.items() or {0: None}.items():
            row = [shown.entry.name, str(version or "-"), config.backend or config.platform, str(config.max_batch_size)]
            table.add_row(*row, *(_summary(proof) if proof else ("", "no card", "")))
    _console().print(table)


def _summary(proof: Card) -> tuple[str, str, str]:
    size = f"{proof.bytes / 1e6:.1f} MB ({proof.bytes / max(proof.baseline_bytes, 1):.0%})"
    metrics = ", ".join(f"{m.name} {m.result:.4f}" for m in proof.metrics)
    return size, " → ".join(step.name for step in proof.trail), metrics


def _show_one(shown: _Shown) -> None:
    console = _console()
    console.print(f"[bold]{shown.entry.name}[/bold]  {_io(shown.entry.config)}")
    console.print(config_text.dump(shown.entry.config), markup=False)
    for version, proof in shown.cards.items():
        console.print(f"[bold]version {version}[/bold]" + ("" if proof else ": no card"))
        if proof:
            _show_card(console, proof)


def _io(config: ModelConfig) -> str:
    sides = [
        ", ".join(f"{t.name}: {t.datatype.name}{list(t.dims)}" for t in s) for s in (config.inputs, config.outputs)
    ]
    return " -> ".join(sides)


def _show_card(console: Console, proof: Card) -> None:
    size = f"{proof.baseline_bytes / 1e6:.1f} MB to {proof.bytes / 1e6:.1f} MB"
    console.print(f"made {proof.created} on {proof.host.get('cpu', 'an unknown host')}; {size}")
    steps = Table("pass", "parameters", "effect", "seconds", box=box.SIMPLE)
    for step in proof.trail:
        steps.add_row(step.name, _pairs(step.parameters), _pairs(step.effect), f"{step.seconds:.1f}")
    results = Table("measured", "original", "result", "on", box=box.SIMPLE)
    for metric in proof.metrics:
        on = f"{metric.samples} samples of {metric.data}"
        results.add_row(metric.name, f"{metric.baseline:.4f}", f"{metric.result:.4f}", on)
    for one in proof.latency:
        on = f"batch {one.batch}, served, one request in flight"
        results.add_row("latency p50", f"{one.baseline_p50:.2f} ms", f"{one.p50:.2f} ms", on)
        results.add_row("latency p99", f"{one.baseline_p99:.2f} ms", f"{one.p99:.2f} ms", on)
    for name, error in proof.output_error.items():
        results.add_row(f"error of {name}", "", _pairs({k: f"{v:.3g}" for k, v in error.items()}), "")
    files = Table("file", "SHA-256", box=box.SIMPLE)
    for name, digest in proof.files.items():
        files.add_row(name, digest)
    for table in (steps, results, files):
        console.print(table)


def _pairs(mapping: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in mapping.items())


if __name__ == "__main__":
    sys.exit(main())
