"""Reloads and polling: what serves is never harmed by what comes, and nothing goes back."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from server.errors import InvalidRequest, NotFound, ServerError, Unavailable
from server.request import InferRequest, Result, Tensor
from tests.server.harness import FP32, answer, ask, catalog_of, running, states, write_entry

# --- reload ---


def test_a_reload_serves_the_new_and_finishes_the_old(tmp_path: Path) -> None:
    write_entry(tmp_path, constant=1, behaviour={"gate": "closed"})
    results: list[Result] = []
    done = threading.Event()
    with running(tmp_path, model_control_mode="explicit", load_models=("m",)) as server:
        catalog = server.server.catalog
        old = server.session()
        row = Tensor("x", FP32, np.zeros((1, 4), np.float32))
        catalog.model("m").submit(InferRequest("m", (row,)), lambda _, result: (results.append(result), done.set()))
        assert old.gate.arrived(1)
        write_entry(tmp_path, constant=2)
        catalog.load("m")
        assert answer(catalog) == 2, "never the old after the load has returned"
        assert not results
        old.gate.open()
        assert done.wait(10)
    assert not isinstance(results[0], ServerError)
    assert float(results[0].outputs[0].array.flat[0]) == 1
    assert old.closed


@pytest.mark.parametrize("harm", ["model", "config", "card", "version"])
def test_a_reload_that_fails_leaves_the_old_serving_with_the_reason_in_the_index(tmp_path: Path, harm: str) -> None:
    entry = write_entry(tmp_path, constant=1)
    with catalog_of(tmp_path, mode="explicit", start=("m",)) as catalog:
        if harm == "model":
            write_entry(tmp_path, behaviour={"load_error": "bad"})
        elif harm == "config":
            (entry / "config.pbtxt").write_text("nonsense")
        elif harm == "card":
            (entry / "1" / "card.json").write_text("{")
        else:
            write_entry(tmp_path, version=2, behaviour={"load_error": "bad"})
        for _ in range(5):
            with pytest.raises(InvalidRequest, match="load"):
                catalog.load("m")
            assert answer(catalog) == 1
        assert catalog.model("m").version == 1
        assert any(row.reason for row in catalog.index())
        assert states(catalog)["m", "1"][0] == "READY"


def test_reloads_under_load_lose_nothing_and_never_go_back(tmp_path: Path) -> None:
    write_entry(tmp_path, constant=0)
    with catalog_of(tmp_path, mode="explicit", start=("m",)) as catalog:
        stop = threading.Event()
        trouble: list[object] = []
        asked = [0, 0]
        loaded = [0]

        def client(number: int) -> None:
            while not stop.is_set():
                at_least = loaded[0]
                model = catalog.model("m")
                result = ask(catalog)
                if isinstance(result, Unavailable) and catalog.model("m") is not model:
                    continue  # closed between look-up and push: the front end asks the new one, and so do we
                if isinstance(result, ServerError) or result.outputs[0].array.flat[0] < at_least:
                    trouble.append(result)
                asked[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for round_ in range(1, 31):
            write_entry(tmp_path, constant=round_)
            catalog.load("m")
            loaded[0] = round_
        stop.set()
        for thread in threads:
            thread.join()
    assert not trouble
    assert min(asked) > 0


# --- polling ---


def test_polling_loads_what_is_new_reloads_what_changed_and_drops_what_is_gone(tmp_path: Path) -> None:
    write_entry(tmp_path, "a", constant=1)
    changed = threading.Event()
    with catalog_of(tmp_path, mode="poll", changed=changed.set) as catalog:
        write_entry(tmp_path, "b", constant=2)
        assert catalog.poll() == {}
        assert answer(catalog, "b") == 2
        write_entry(tmp_path, "a", constant=3)
        catalog.poll()
        assert answer(catalog, "a") == 3
        shutil.rmtree(tmp_path / "a")
        catalog.poll()
        with pytest.raises(NotFound, match="'a' is not found"):
            catalog.model("a")
        assert [row.name for row in catalog.index()] == ["b"]


def test_polling_keeps_versions_that_did_not_change(tmp_path: Path) -> None:
    write_entry(tmp_path, version=1, config="version_policy: { all { } }\n", constant=1)
    with catalog_of(tmp_path, mode="poll") as catalog:
        first = catalog.model("m", "1")
        catalog.poll()
        assert catalog.model("m", "1") is first
        write_entry(tmp_path, version=2, constant=2)
        catalog.poll()
        assert catalog.versions("m") == (1, 2)
        assert catalog.model("m", "1") is first
        assert answer(catalog, version="1") == 1


def test_polling_does_not_try_a_bad_entry_again_until_it_changes(tmp_path: Path) -> None:
    write_entry(tmp_path, behaviour={"load_error": "bad"})
    with catalog_of(tmp_path, mode="poll") as catalog:
        assert catalog.poll() == {}
        assert not catalog.ready
        write_entry(tmp_path, constant=1)
        assert catalog.poll() == {}
        assert answer(catalog) == 1
        assert catalog.ready


def test_a_repository_that_is_away_for_a_while_takes_no_model_with_it(tmp_path: Path) -> None:
    root = tmp_path / "r"
    write_entry(root, constant=1)
    with catalog_of(root, mode="poll") as catalog:
        root.rename(tmp_path / "away")
        for look in (catalog.poll, catalog.index):
            with pytest.raises(Unavailable, match=r"^a model repository cannot be read, see the server's log$"):
                look()
        assert answer(catalog) == 1
        (tmp_path / "away").rename(root)
        assert catalog.poll() == {}
        assert answer(catalog) == 1
