"""What a run writes can be read back, by us and by a spreadsheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load import result
from tests.load.result import STAGES, ClientCpu, Level, Run, Spread, Stages, Target

number = st.floats(0, 1e9, allow_nan=False)
spreads = st.builds(Spread, *([number] * 9), extra=st.dictionaries(st.sampled_from(["p75", "p42.5"]), number))
levels = st.builds(
    Level,
    load=number,
    concurrency=st.none() | st.integers(1, 1024),
    request_rate=st.none() | number,
    batch=st.integers(1, 64),
    requests=st.integers(0, 10**6),
    succeeded=st.integers(0, 10**6),
    errors=st.dictionaries(st.text(max_size=20), st.integers(1, 9), max_size=3),
    duration_s=number,
    throughput=number,
    inferences=number,
    latency=st.none() | spreads,
    histogram=st.lists(st.tuples(number, st.integers(0, 99)), max_size=4).map(tuple),
    lag=st.none() | spreads,
    client=st.builds(ClientCpu, number, number),
    client_limited=st.none() | st.text(max_size=20),
    stages=st.none() | st.builds(Stages, *([number] * len(STAGES))),
    stages_note=st.none() | st.text(max_size=20),
)
targets = st.builds(
    Target,
    *([st.text(max_size=12)] * 6),
    inputs=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2),
    levels=st.lists(levels, max_size=3).map(tuple),
)
runs = st.builds(
    Run,
    tool=st.text(max_size=8),
    started=st.text(max_size=8),
    command=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    mode=st.sampled_from([result.CONCURRENCY, result.REQUEST_RATE]),
    interrupted=st.booleans(),
    host=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2),
    targets=st.lists(targets, max_size=2).map(tuple),
)


@given(runs)
def test_a_run_survives_json(run: Run) -> None:
    assert result.from_json(result.to_json(run)) == run


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "targets": [{}]}'])
def test_a_file_that_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="load test result"):
        result.from_json(text)


def test_csv_has_a_row_per_level_under_the_same_columns(tmp_path: Path) -> None:
    spread = Spread(1, 2, 0.5, 2, 3, 3.5, 3.9, 4, 5)
    cpu = ClientCpu(0.5, 0.25)
    failures = {"UNAVAILABLE: full": 2}
    stages = Stages(1, 2, 3, 4, 5, 6)
    level = Level(8, 8, None, 4, 10, 8, failures, 2.0, 4.0, 16.0, spread, ((5.0, 8),), None, cpu, "why, so", stages)
    failed = Level(9, 9, None, 4, 2, 0, failures, 2.0, 0.0, 0.0, None, (), spread, cpu, None)
    target = Target('a "b"', "h:1", "m", "", "p", "s", {}, (level, failed))
    run = Run("0", "now", (), "concurrency", False, {}, (target, target))
    file = tmp_path / "out.csv"
    result.write_csv(run, file)
    rows = result.read_csv(file)
    assert len(rows) == 4
    assert tuple(rows[0]) == result.COLUMNS
    assert rows[0]["Target"] == 'a "b"'
    assert (rows[0]["Failed"], rows[0]["p99.9 ms"], rows[0]["Client limited"]) == ("2", "4", "why, so")
    assert (rows[1]["p50 ms"], rows[1]["Lag p99 ms"], rows[1]["Request rate"]) == ("", "3.9", "")
    assert [rows[0][f"{name.capitalize()} ms"] for name in STAGES] == ["1", "2", "3", "4", "5", "6"]
    assert rows[1]["Queue ms"] == ""
    result.write_json(run, tmp_path / "out.json")
    assert result.read(tmp_path / "out.json") == run
    assert json.loads((tmp_path / "out.json").read_text())["targets"][0]["levels"][0]["latency"]["p99_9"] == 4
