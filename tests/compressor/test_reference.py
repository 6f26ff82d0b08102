"""The reference of recipe keys is generated; it must say what the code does now."""

from __future__ import annotations

import dataclasses

from compressor import reference
from compressor.passes import REGISTRY


def test_the_page_in_docs_is_what_the_code_gives() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "run `make docs`"


def test_every_pass_and_its_keys_are_on_the_page() -> None:
    page = reference.render()
    for name, cls in REGISTRY.items():
        assert f"### `{name}`" in page
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            assert f"| `{field.name}` |" in page
