"""When the regression check fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import check
from tests.bench.check import QUIET, Relative, problem, relative, verdict
from tests.bench.h2load import Measured

BASE = Relative(cpu=0.2, rate=5.0, other_cores=0.0)


def test_thirty_per_cent_dearer_fails() -> None:
    text = problem(16, Relative(0.26, 5.0, 0.0), BASE)
    assert text == "16 in flight: 30% more processor time per request than the baseline, allowed is 25%"


@pytest.mark.parametrize(("cpu", "rate"), [(0.2, 5.0), (0.24, 5.0), (0.1, 5.0), (0.2, 3.1), (0.2, 20.0)])
def test_noise_and_gains_pass(cpu: float, rate: float) -> None:
    assert problem(16, Relative(cpu, rate, 0.0), BASE) is None


def test_half_the_throughput_fails() -> None:
    text = problem(16, Relative(0.2, 2.5, 0.0), BASE)
    assert text == "16 in flight: 50% fewer requests per second than the baseline, allowed is 40%"


def test_one_level_is_enough_to_fail() -> None:
    status, lines = verdict({1: BASE, 64: Relative(0.26, 5.0, 0.0)}, {1: BASE, 64: BASE})
    assert status == 1
    assert [line.split(":")[0] for line in lines] == ["64 in flight"]


def test_a_busy_machine_gets_no_verdict_but_a_quiet_level_fails_all_the_same() -> None:
    busy, quiet = Relative(0.4, 5.0, 2 * QUIET), Relative(0.4, 5.0, 0.0)
    assert verdict({16: busy}, {16: BASE})[0] == 2
    assert verdict({1: quiet, 16: busy}, {1: BASE, 16: BASE})[0] == 1
    assert verdict({16: BASE}, {16: BASE}) == (0, [])


def test_a_busy_machine_does_not_pass_either() -> None:
    """Others make ours look cheaper: while it waits for a core, requests gather."""
    status, lines = verdict({1: BASE, 16: Relative(0.15, 5.0, 2 * QUIET)}, {1: BASE, 16: BASE})
    assert status == 2
    assert lines == ["others used up to 0.50 cores (at 16 in flight): no verdict there"]


def measured(cpu: float, rate: float, others: float) -> Measured:
    return Measured(100, 1.0, rate, 1.0, 2.0, cpu, 0.1, others)


def test_the_least_disturbed_runs_count() -> None:
    """Ours was disturbed in half of its runs, the yardstick in none."""
    mine = [measured(50, 1000, 0.0)] * check.COUNTED + [measured(100, 300, 1.5)] * check.COUNTED
    yardstick = [measured(250, 200, 0.0)] * 2 * check.COUNTED
    assert relative({"ours": mine, "echo": yardstick}, "echo") == Relative(0.2, 5.0, 0.0)


def test_the_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = {1: BASE, 64: Relative(0.3, 2.0, 0.1)}
    check.write(tmp_path / "baseline.json", found)
    assert check.read(tmp_path / "baseline.json") == found
