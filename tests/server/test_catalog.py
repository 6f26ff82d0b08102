"""The catalog: which versions serve, in which state, and that a load, good or bad, never harms what serves."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from protos import repository
from protos.datatypes import BY_NAME
from protos.model_config import ConfigError
from server.catalog import NOT_ALLOWED, Catalog, parse_version
from server.errors import InvalidRequest, NotFound, ServerError, Unavailable
from server.loading import EntryLoader
from server.states import MOVES, Row, State, Status
from tests.server.harness import SETTINGS, answer, catalog_of, eventually, states, write_card, write_entry

FP32 = BY_NAME["FP32"]


# --- what serves ---


def test_the_latest_version_serves_by_default(tmp_path: Path) -> None:
    write_entry(tmp_path, version=1, constant=1)
    write_entry(tmp_path, version=10, constant=10)
    write_entry(tmp_path, version=9, constant=9)
    with catalog_of(tmp_path) as catalog:
        assert catalog.versions("m") == (10,)
        assert answer(catalog) == 10


@pytest.mark.parametrize(
    ("policy", "served"),
    [("all { }", (1, 2, 3)), ("latest { num_versions: 2 }", (2, 3)), ("specific { versions: [1, 3] }", (1, 3))],
)
def test_the_version_policy_decides(tmp_path: Path, policy: str, served: tuple[int, ...]) -> None:
    for version in (1, 2, 3):
        write_entry(tmp_path, version=version, constant=version, config=f"version_policy: {{ {policy} }}\n")
    with catalog_of(tmp_path) as catalog:
        assert catalog.versions("m") == served
        assert [answer(catalog, version=str(v)) for v in served] == list(served)
        assert answer(catalog) == served[-1]
        assert states(catalog) == {("m", str(v)): ("READY", "") for v in served}


def test_a_policy_that_selects_nothing_is_a_reason(tmp_path: Path) -> None:
    write_entry(tmp_path, config="version_policy: { specific { versions: [7] } }\n")
    with catalog_of(tmp_path) as catalog:
        assert "at least one version must be available under the version policy of model 'm'" in str(states(catalog))
        assert not catalog.ready


@pytest.mark.parametrize("text", ["x", "1.0", "", "0", "-1", "9" * 30, "９", " 1", "1\n"])
def test_a_version_is_a_whole_number_above_0(text: str) -> None:
    if not text:
        assert parse_version(text) == 0
        return
    with pytest.raises(InvalidRequest, match="version should be an integral value > 0"):
        parse_version(text)


def test_lookups_say_what_is_missing(tmp_path: Path) -> None:
    write_entry(tmp_path)
    with catalog_of(tmp_path) as catalog:
        with pytest.raises(NotFound, match=r"^Request for unknown model: 'n' is not found$"):
            catalog.model("n")
        with pytest.raises(NotFound, match=r"^Request for unknown model: 'm' version 2 is not found$"):
            catalog.model("m", "2")


# --- what does not load ---


def test_a_model_that_does_not_load_says_why_and_the_others_serve(tmp_path: Path) -> None:
    write_entry(tmp_path, "bad", behaviour={"load_error": "out of flour"})
    write_entry(tmp_path, "good", constant=1)
    with catalog_of(tmp_path) as catalog:
        assert answer(catalog, "good") == 1
        state, reason = states(catalog)["bad", "1"]
        assert state == "UNAVAILABLE"
        assert "out of flour" in reason
        with pytest.raises(Unavailable, match="'bad' version 1 is not at ready state"):
            catalog.model("bad", "1")
        with pytest.raises(NotFound, match="'bad' has no available versions"):
            catalog.model("bad")
        assert not catalog.ready, "strict"
    with catalog_of(tmp_path, strict=False) as catalog:
        assert catalog.ready


def test_one_bad_version_fails_the_load_of_all_as_in_triton(tmp_path: Path) -> None:
    write_entry(tmp_path, version=1, config="version_policy: { all { } }\n")
    write_entry(tmp_path, version=2, behaviour={"load_error": "burnt"})
    catalog = Catalog((tmp_path,), EntryLoader(SETTINGS))
    failed = catalog.start()
    assert failed["m"].startswith("load failed for model 'm': version 2 is at UNAVAILABLE state: ")
    assert "burnt;" in failed["m"]
    assert catalog.versions("m") == ()
    catalog.stop()


@pytest.mark.parametrize("config", ["max_batch_size: -1\n", "no such field", "sequence_batching { }\n", "\xff"])
def test_a_config_that_cannot_be_used_is_a_reason_without_paths(tmp_path: Path, config: str) -> None:
    write_entry(tmp_path, config=config)
    with catalog_of(tmp_path) as catalog:
        (row,) = catalog.index()
        assert row.state == "UNAVAILABLE"
        assert row.reason
        assert str(tmp_path) not in row.reason


def test_an_unsupported_field_is_named(tmp_path: Path) -> None:
    write_entry(tmp_path, config="sequence_batching { }\n")
    with catalog_of(tmp_path) as catalog:
        assert "sequence_batching" in catalog.index()[0].reason


def test_the_same_name_in_two_repositories_is_refused(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_entry(tmp_path / root)
    with catalog_of(tmp_path / "a", tmp_path / "b") as catalog:
        assert "model appears in two or more repositories" in catalog.index()[0].reason
        assert not catalog.models()


def test_several_repositories_make_one_catalog(tmp_path: Path) -> None:
    write_entry(tmp_path / "a", "one", constant=1)
    write_entry(tmp_path / "b", "two", constant=2)
    with catalog_of(tmp_path / "a", tmp_path / "b") as catalog:
        assert (answer(catalog, "one"), answer(catalog, "two")) == (1, 2)


def test_the_settings_decide_on_auto_completion_and_its_batch_size(tmp_path: Path) -> None:
    write_entry(tmp_path)
    entry = repository.read(tmp_path, "m")
    loader = EntryLoader(replace(SETTINGS, backend_config={"fake": {"default-max-batch-size": "16"}}))
    model = loader(entry, 1)
    assert model.config.max_batch_size == 16
    model.close()
    with pytest.raises(ConfigError, match="auto-completion is switched off"):
        EntryLoader(replace(SETTINGS, auto_complete_config=False))(entry, 1)


# --- cards ---


def test_a_version_that_matches_its_card_loads(tmp_path: Path) -> None:
    write_entry(tmp_path, constant=1)
    write_card(tmp_path)
    with catalog_of(tmp_path) as catalog:
        assert answer(catalog) == 1


def test_a_file_that_does_not_match_its_card_is_refused(tmp_path: Path) -> None:
    entry = write_entry(tmp_path, constant=1)
    write_card(tmp_path)
    file = entry / "1" / "model.fake"
    file.write_text(file.read_text().replace("constant = 1", "constant = 2"))
    with catalog_of(tmp_path) as catalog:
        (row,) = catalog.index()
        assert row.state == "UNAVAILABLE"
        assert "model.fake" in row.reason
        assert "SHA-256" in row.reason or "sha256" in row.reason.lower()
        assert str(tmp_path) not in row.reason


def test_a_card_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    entry = write_entry(tmp_path)
    (entry / "1" / "card.json").write_text("{")
    with catalog_of(tmp_path) as catalog:
        assert catalog.index()[0].state == "UNAVAILABLE"


# --- control modes ---


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_clients_may_load_and_unload_only_in_explicit_mode(tmp_path: Path, mode: str) -> None:
    write_entry(tmp_path)
    with catalog_of(tmp_path, mode=mode) as catalog:
        for call in (catalog.load, catalog.unload):
            with pytest.raises(Unavailable, match=f"^{NOT_ALLOWED}$"):
                call("m")


def test_explicit_mode_loads_what_is_named_and_lists_the_rest(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_entry(tmp_path, name)
    with catalog_of(tmp_path, mode="explicit", start=("a", "b")) as catalog:
        assert [m.name for m in catalog.models()] == ["a", "b"]
        assert catalog.ready
        assert catalog.index()[-1] == Row("c")
        assert [row.name for row in catalog.index(ready_only=True)] == ["a", "b"]
    with catalog_of(tmp_path, mode="explicit") as catalog:
        assert catalog.models() == ()
    with catalog_of(tmp_path, mode="explicit", start=("*",)) as catalog:
        assert len(catalog.models()) == 3


def test_load_serve_unload(tmp_path: Path) -> None:
    write_entry(tmp_path, constant=5)
    changed = threading.Event()
    with catalog_of(tmp_path, mode="explicit", changed=changed.set) as catalog:
        catalog.load("m")
        assert answer(catalog) == 5
        catalog.unload("m")
        with pytest.raises(NotFound, match="'m' has no available versions"):
            catalog.model("m")
        eventually(lambda: states(catalog) == {("m", "1"): ("UNAVAILABLE", "unloaded")}, changed)
        assert catalog.ready, "what was unloaded on purpose does not count"
        catalog.load("m")
        assert answer(catalog) == 5


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("", InvalidRequest, "Model name cannot be empty. Please enter a valid name to deploy."),
        ("nobody", NotFound, "failed to load 'nobody', failed to poll from model repository"),
        ("../m", InvalidRequest, "invalid model name '../m', model name must not contain path traversal characters"),
        ("/etc", InvalidRequest, "invalid model name '/etc', model name must not contain path traversal characters"),
        ("a\0b", InvalidRequest, "invalid model name 'a\0b', model name must not contain path traversal characters"),
    ],
)
def test_names_from_clients_are_checked(tmp_path: Path, name: str, error: type[ServerError], text: str) -> None:
    with catalog_of(tmp_path, mode="explicit") as catalog:
        with pytest.raises(error) as caught:
            catalog.load(name)
        assert str(caught.value) == text
        assert catalog.index() == (), "a name that was only asked for leaves nothing behind"
        if name == "nobody":
            catalog.unload(name)


def test_a_config_given_with_the_load_replaces_the_file_s(tmp_path: Path) -> None:
    write_entry(tmp_path, version=1, constant=1)
    write_entry(tmp_path, version=2, constant=2)
    with catalog_of(tmp_path, mode="explicit") as catalog:
        catalog.load("m", '{"version_policy": {"all": {}}, "max_batch_size": 2}')
        assert catalog.versions("m") == (1, 2)
        assert catalog.model("m").config.max_batch_size == 2
        catalog.load("m")
        assert catalog.versions("m") == (2,)
        for bad in ('{"name": "other"}', "{", '{"nonsense": 1}'):
            with pytest.raises(InvalidRequest, match="load parameter 'config'"):
                catalog.load("m", bad)
        assert answer(catalog) == 2


# --- states ---


def test_storms_of_loads_and_unloads_end_in_a_true_index(tmp_path: Path) -> None:
    write_entry(tmp_path, constant=1)
    with catalog_of(tmp_path, mode="explicit") as catalog:

        def storm() -> None:
            for _ in range(15):
                catalog.load("m")
                catalog.unload("m")

        threads = [threading.Thread(target=storm) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        catalog.load("m")
        assert states(catalog) == {("m", "1"): ("READY", "")}
        assert answer(catalog) == 1


def test_a_stopping_catalog_takes_no_more_loads(tmp_path: Path) -> None:
    write_entry(tmp_path)
    catalog = Catalog((tmp_path,), EntryLoader(SETTINGS), mode="explicit")
    catalog.start(("m",))
    catalog.stop(1)
    assert not catalog.ready
    assert not catalog.is_ready("m")
    with pytest.raises(Unavailable):
        catalog.load("m")


def test_only_the_moves_in_the_table_exist() -> None:
    assert set(MOVES) == set(State)
    for state, targets in MOVES.items():
        for target in State:
            if target in targets:
                assert Status(state).to(target).state is target
            else:
                with pytest.raises(RuntimeError, match="no move from"):
                    Status(state).to(target)
