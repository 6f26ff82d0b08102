"""The table of status codes is total, and its texts fit into a header."""

from __future__ import annotations

import grpc
import pytest

from server.errors import InvalidRequest, ServerError
from server.rpc.http2.framing import percent_encoded
from server.rpc.status import CODES, TEXT_LIMIT, Code, code_of, text_of


def everything(cls: type[ServerError]) -> list[type[ServerError]]:
    return [found for child in cls.__subclasses__() for found in (child, *everything(child))]


@pytest.mark.parametrize("cls", [cls for cls in everything(ServerError) if cls.__module__ == ServerError.__module__])
def test_every_error_has_a_code_and_none_is_unknown(cls: type[ServerError]) -> None:
    code = code_of(cls.__new__(cls))
    assert code not in (Code.OK, grpc.StatusCode.UNKNOWN.value[0])


def test_numbers_are_grpc_s() -> None:
    assert {code.name: code.value for code in Code}.items() <= {c.name: c.value[0] for c in grpc.StatusCode}.items()
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("character", ["x", "%", "é", "☺", "\n"])
def test_a_text_that_echoes_a_megabyte_is_cut_to_what_a_header_may_carry(character: str) -> None:
    text = text_of(InvalidRequest("name " + character * (1 << 20)))
    assert text.startswith("name " + (character if character.isprintable() else "\\"))
    assert len(percent_encoded(text)) < TEXT_LIMIT + 50
