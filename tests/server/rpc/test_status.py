"""The table of status codes is total, and its texts fit into a header."""

from __future__ import annotations

import grpc
import pytest

from server.errors import InvalidRequest, ServerError
from server.rpc.status import CODES, TEXT_LIMIT, Code, code_of, text_of


def everything(cls: type[ServerError]) -> list[type[ServerError]]:
    return [found for child in cls.__subclasses__() for found in (child, *everything(child))]


@pytest.mark.parametrize("cls", everything(ServerError))
def test_every_error_has_a_code_and_none_is_unknown(cls: type[ServerError]) -> None:
    code = code_of(cls.__new__(cls))
    assert code not in (Code.OK, grpc.StatusCode.UNKNOWN.value[0])


def test_numbers_are_grpc_s() -> None:
    assert {code.name: code.value for code in Code}.items() <= {c.name: c.value[0] for c in grpc.StatusCode}.items()
    assert len(set(CODES.values())) == len(CODES)


def test_a_text_that_echoes_a_megabyte_is_cut() -> None:
    assert len(text_of(InvalidRequest("x" * (1 << 20)))) < TEXT_LIMIT + 50
