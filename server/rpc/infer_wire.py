"""ModelInfer's messages as wire bytes, without protobuf.

Most of a ModelInferRequest repeats from request to request: names, types, shapes, parameters, requested outputs. That
is its *head* here. Only the id and the tensors' bytes differ. `split` takes them apart, so that a head that has been
parsed once need not be parsed again (`infer_requests.py`).

That is sound because a parser looks at each field number by itself: the values of one number in their order make the
field, and how the numbers are interleaved changes nothing (https://protobuf.dev/programming-guides/encoding/#order and
#last-one-wins); no field of this message excludes another one (there is no `oneof` at its top).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from server.rpc.call import Buffer

Split = tuple[bytes, str, list[tuple[int, int]]]
"""Head, id, and (offset, length) in the body of each raw tensor."""

HEAD_LIMIT = 4096
"""Bytes of a head, so that what is kept of heads stays small."""
RAW_LIMIT = 256
"""Raw tensors of a request; with HEAD_LIMIT it bounds the scan: a body of a million empty fields is protobuf's."""
MAX_BYTES = (1 << 31) - 1
"""Of one message: gRPC's limit, and protobuf's."""

# numbers of the fields in ModelInferRequest and, equal for the id, in ModelInferResponse
ID = 3
RAW_INPUT = 7
RAW_OUTPUT = 6
_HEAD = (1, 2, 4, 5, 6)

_DELIMITED = 2
"""The wire type of all fields of both messages: a length and that many bytes."""
_HEAD_TAGS = frozenset(number << 3 | _DELIMITED for number in _HEAD)
_RAW_TAG = RAW_INPUT << 3 | _DELIMITED
_ID_TAG = ID << 3 | _DELIMITED


def split(body: Buffer) -> Split | None:
    """The parts of a ModelInferRequest; None where anything is unusual, which protobuf must then read or refuse.

    Unusual are fields that the message does not have, lengths in more bytes than they need, a second id, text in the id
    that is not UTF-8, a field cut off, and what is over the limits. Whether the head is a valid one is not looked at.
    """
    size = len(body)
    if size > MAX_BYTES:
        return None
    pieces: list[Buffer] = []
    raws: list[tuple[int, int]] = []
    request_id: str | None = None
    start = at = 0  # `start`: of the piece of head that `at` is the end of
    try:
        while at < size:
            tag = body[at]
            length = body[at + 1]
            begin = at + 2
            if length > 127:
                length, begin = _length(body, at + 1)
            end = begin + length
            if tag in _HEAD_TAGS:
                if end - start > HEAD_LIMIT:
                    return None
            else:
                if start < at:
                    pieces.append(body[start:at])
                start = end
                if tag == _RAW_TAG and len(raws) < RAW_LIMIT:
                    raws.append((begin, length))
                elif tag == _ID_TAG and request_id is None:
                    request_id = str(body[begin:end], "utf-8")
                else:
                    return None
            at = end
    except (IndexError, ValueError):  # cut off in a length; an odd length or id
        return None
    if at != size:
        return None
    if start < at:
        pieces.append(body[start:at])
    head = b"".join(pieces)
    return (head, request_id or "", raws) if len(head) <= HEAD_LIMIT else None


class Layout(NamedTuple):
    """Where everything stands in a body. Another one of its size with the same bytes around id and tensors is split
    alike, which takes 0.3 µs to see and `split` 2."""

    around: tuple[tuple[int, int, Buffer], ...]
    """Start, end and bytes of each piece that is neither the id's text nor a tensor's contents."""
    id: tuple[int, int] | None
    """Start and end; None where there is none, or an empty one."""
    raws: list[tuple[int, int]]

    def request_id(self, body: Buffer) -> str | None:
        """Of a body as large as the one that this was made from; None where it is laid out otherwise."""
        for start, end, piece in self.around:
            if body[start:end] != piece:
                return None
        if self.id is None:
            return ""
        start, end = self.id
        try:
            return str(body[start:end], "utf-8")
        except ValueError:  # no UTF-8
            return None


def layout(body: Buffer, parts: Split) -> Layout:
    """Of a body and what `split` made of it."""
    _, request_id, raws = parts
    holes = [(start, start + length) for start, length in raws]
    found = _id_place(body) if request_id else None
    if found is not None:
        holes = sorted([*holes, found])
    around = []
    at = 0
    for start, end in [*holes, (len(body), len(body))]:
        if at < start:
            around.append((at, start, bytes(body[at:start])))
        at = end
    return Layout(tuple(around), found, raws)


def _id_place(body: Buffer) -> tuple[int, int]:
    """Where the id's text stands in a body that `split` has found one in."""
    at = 0
    while True:
        length, begin = _length(body, at + 1) if body[at + 1] > 127 else (body[at + 1], at + 2)
        if body[at] == _ID_TAG:
            return begin, begin + length
        at = begin + length


def _length(body: Buffer, at: int) -> tuple[int, int]:
    """A length of more than one byte, and where it ends. Raises ValueError where it has more bytes than it needs."""
    length = shift = 0
    while shift < 35:
        byte = body[at]
        at += 1
        length |= (byte & 127) << shift
        if byte < 128:
            if not byte:
                break
            return length, at
        shift += 7
    raise ValueError("no length as protobuf writes it")


@lru_cache(maxsize=1024)
def prefix(number: int, length: int) -> bytes:
    """What stands before the `length` bytes of a field."""
    written = bytearray((number << 3 | _DELIMITED,))
    while length > 127:
        written.append(length & 127 | 128)
        length >>= 7
    written.append(length)
    return bytes(written)
