"""How long and how often a benchmark measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import h2load
from tests.bench.figures import Figure, in_turn, of_loads
from tests.bench.h2load import Load, Measured
from tests.peers.peer import Question, Running


@dataclass(frozen=True, slots=True)
class Plan:
    folder: Path
    """A temporary one, of this benchmark alone."""
    quick: bool
    most: int = 4
    """Repeats at most; as many as there are servers in most comparisons, so that each begins a round."""

    @property
    def seconds(self) -> float:
        """Of one run of one load."""
        return 1.0 if self.quick else 2.0

    @property
    def repeats(self) -> int:
        return min(2, self.most) if self.quick else self.most

    def at_most(self, repeats: int) -> Plan:
        """For benchmarks of many combinations."""
        return replace(self, most=repeats)

    def compare(
        self, bench: str, case: str, load: Load, asked: Mapping[str, tuple[Running, Question]], label: str | None = None
    ) -> list[Figure]:
        """Servers under the same load, in turn; the keys are the subjects of the figures."""
        ready = {name: (h2load.prepared(self.folder, *one), one[0].process) for name, one in asked.items()}

        def measure(name: str) -> Measured:
            prepared, process = ready[name]
            return h2load.measure(prepared, load, self.seconds, process)

        found = in_turn({name: lambda name=name: measure(name) for name in ready}, self.repeats)  # type: ignore[misc]
        where = label or in_flight(load.in_flight)
        return [figure for name, runs in found.items() for figure in of_loads(bench, name, case, where, runs)]


def in_flight(count: int) -> str:
    return f"{count} in flight"
