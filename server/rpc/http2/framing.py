"""gRPC over HTTP/2, the parts without state: headers, timeouts, status texts, metadata, message prefixes, expansion.

Source: github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md; statuses for protocol faults as grpcio's server gives them.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterable, Sequence

from server.errors import InvalidRequest, ResourceExhausted
from server.logs import clean
from server.rpc.call import Buffer, Metadata
from server.rpc.status import Code

Headers = Sequence[tuple[bytes, bytes]]

PREFIX = struct.Struct(">BI")
"""Whether a message is compressed, and its length."""
PREFIX_BYTES = PREFIX.size
unpack_prefix = PREFIX.unpack_from
ENCODINGS = (b"gzip", b"deflate")
ACCEPTED = b"identity,deflate,gzip"
HEAD: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_TRAILERS: Headers = ((b"grpc-status", b"0"),)

_UNITS_NS = {b"H": 3600 * 10**9, b"M": 60 * 10**9, b"S": 10**9, b"m": 10**6, b"u": 10**3, b"n": 1}
_OWN = frozenset((b"content-type", b"te", b"user-agent"))
_OWN_PREFIXES = (b":", b"grpc-")
"""Headers that are gRPC's own and no metadata, and beginnings of such."""
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


def is_grpc(content_type: bytes) -> bool:
    """Not so `application/grpc-web`, whose clients wait for another kind of trailers."""
    rest = content_type.removeprefix(b"application/grpc")
    return rest != content_type and rest[:1] in (b"", b"+", b";")


def timeout_ns(value: bytes) -> int | None:
    """`grpc-timeout` in nanoseconds; None where it is malformed."""
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS_NS or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * _UNITS_NS[unit]


def percent_encoded(text: str) -> bytes:
    """A status text as it travels: UTF-8 bytes outside printable ASCII, and the percent sign, as %XX."""
    data = text.encode("utf-8", "replace")
    if all(byte in _PLAIN for byte in data):
        return data
    return b"".join(b"%c" % byte if byte in _PLAIN else b"%%%02X" % byte for byte in data)


def status_headers(code: Code, text: str) -> list[tuple[bytes, bytes]]:
    found = [(b"grpc-status", b"%d" % code)]
    if text:
        found.append((b"grpc-message", percent_encoded(text)))
    return found


def metadata_of(headers: Headers) -> Metadata:
    """A client's metadata. Values of `-bin` keys that are no base64 are left out, as there is nothing to give."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name in _OWN or name.startswith(_OWN_PREFIXES):
            continue
        key = name.decode("ascii", "replace")
        if not key.endswith("-bin"):
            found.append((key, value.decode("latin-1")))
            continue
        for part in value.split(b","):
            try:
                found.append((key, base64.b64decode(part.strip() + b"=" * (-len(part.strip()) % 4), validate=True)))
            except binascii.Error:
                continue
    return tuple(found)


def metadata_headers(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    found = []
    for key, value in metadata:
        data = value if isinstance(value, bytes) else value.encode("latin-1")
        found.append((key.encode("ascii"), base64.b64encode(data).rstrip(b"=") if key.endswith("-bin") else data))
    return found


def too_large(size: int, limit: int) -> ResourceExhausted:
    return ResourceExhausted(f"Received message larger than max ({size} vs. {limit})")


def expand(message: Buffer, encoding: bytes, limit: int) -> bytes:
    """A compressed message's contents. Never makes more than `limit` + 1 bytes of them.

    Raises ResourceExhausted beyond the limit, InvalidRequest for what is not whole.
    """
    expander = zlib.decompressobj(_WINDOW[encoding])
    try:
        data = expander.decompress(message, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"message is not valid {encoding.decode()}: {clean(error, 200)}") from None
    if len(data) > limit:
        raise ResourceExhausted(f"Received message expands to more than max ({limit})")
    if not expander.eof:
        raise InvalidRequest(f"message is not valid {encoding.decode()}: it ends too early")
    if expander.unused_data:
        raise InvalidRequest(f"message is not valid {encoding.decode()}: there is more behind its end")
    return data


def framed(answer: bytes | Sequence[Buffer]) -> tuple[Buffer, ...]:
    """An answer with its prefix, small parts joined, large ones as they are."""
    if isinstance(answer, bytes):
        return (PREFIX.pack(0, len(answer)) + answer,)
    total = sum(memoryview(part).nbytes for part in answer)
    out: list[Buffer] = [PREFIX.pack(0, total)]
    for part in answer:
        if memoryview(part).nbytes < JOINED and len(out[-1]) < JOINED:
            out[-1] = b"".join((out[-1], part))
        else:
            out.append(part)
    return tuple(out)


JOINED = 1 << 14
"""Bytes below which copying a part is cheaper than handing it on alone."""


def header(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def size_of(parts: Iterable[Buffer]) -> int:
    return sum(memoryview(part).nbytes for part in parts)
