"""The one table from the server's errors to gRPC's status codes (as Triton's: server/src/grpc/grpc_utils.cc)."""

from __future__ import annotations

from enum import IntEnum

from server import errors
from server.errors import ServerError
from server.logs import clean


class Code(IntEnum):
    """gRPC's numbers, named here so that a transport without grpcio can use them."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


CODES: dict[type[ServerError], Code] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.NotFound: Code.NOT_FOUND,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.Unsupported: Code.UNIMPLEMENTED,
    errors.Cancelled: Code.CANCELLED,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.ResourceExhausted: Code.RESOURCE_EXHAUSTED,
    errors.Internal: Code.INTERNAL,
}

TEXT_LIMIT = 4096
"""Bytes of a status text as it travels: in a header, which clients limit (grpcio: 8 KiB), with each byte that is
not printable ASCII as three."""
CUT = "..."


def code_of(error: ServerError) -> Code:
    """The code of the nearest class in the table."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def text_of(error: ServerError) -> str:
    """The error's own text on one line: what it echoes of a client's bytes is escaped, and cut where it is large."""
    text = clean(error, TEXT_LIMIT)
    if text.isascii() and "%" not in text:
        return text
    left = TEXT_LIMIT - len(CUT)
    for at, character in enumerate(text):
        left -= 1 if character.isascii() and character != "%" else 3 * len(character.encode("utf-8", "replace"))
        if left < 0:
            return text[:at] + CUT
    return text
