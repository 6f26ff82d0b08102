"""What a front and the engine say to each other: records, through two rings in one memory, and a socket as doorbell.

A ring of the bell says how much has been written and how much read, since the beginning; so it is enough to hear the
last. There is one for all records of a round.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum
from mmap import mmap
from typing import NamedTuple

from server.rpc.call import Buffer, Metadata
from server.rpc.fronts.ring import Broken, Reader, Writer

RING_BYTES = 4 << 20
"""Each way; what does not fit waits on its own side. A multiple of a page."""
MEMORY_BYTES = 2 * RING_BYTES
LARGE = 1 << 16
"""Bytes from which on a body is a view of its record; smaller ones are cheaper to copy."""
_NEVER = (1 << 63) - 1
_BELL = struct.Struct("<QQ")
"""Bytes written, bytes read."""
_HEAD = struct.Struct("<BxHIQq")
"""Kind, code, bytes of metadata, call, time."""


class Kind(IntEnum):
    SETUP = 1
    """The engine's first word; the body is JSON."""
    UP = 2
    """The front serves the connections that it is given."""
    FAILED = 3
    """The front cannot serve; the body says why."""
    DRAIN = 4
    """Accepted calls are to be finished within `time`."""
    DRAINED = 5
    """`code` is 1 if they were."""
    STOP = 6
    """The front is to end, `time` after this at most."""
    LOG = 7
    """A line of the front's log: `code` is the level, the body JSON."""
    CLOSED = 8
    """How many of the front's connections have ended since its beginning, as `call`."""
    CALL = 10
    """A unary call: `code` is the route, `time` the deadline (0: none), the body the message."""
    OPEN = 11
    """A stream; otherwise as CALL, without a message."""
    MESSAGE = 12
    """Of a stream, either way."""
    HALF_CLOSE = 13
    """The client has sent its last."""
    CANCEL = 14
    """The client has gone."""
    METADATA = 15
    """To go before the first answer."""
    ANSWER = 16
    """The one message of a unary call that went well, with trailing metadata."""
    END = 17
    """A status: `code` is gRPC's, the body the text, with trailing metadata."""


class Record(NamedTuple):
    """Times are in nanoseconds; deadlines are on CLOCK_MONOTONIC, which all processes of a host share."""

    kind: int
    code: int
    call: int
    time: int
    metadata: bytes
    body: Buffer


class Gone(Exception):
    """The other side has ended."""


class Link:
    """One side of it. `put` may be called from any thread, everything else from one."""

    def __init__(self, bell: socket.socket, memory: mmap, engine: bool, most: int) -> None:
        """`most`: bytes of the largest record that is taken from the other side."""
        bell.setblocking(False)
        self._bell = bell
        self._memory = memory
        mine, other = (0, RING_BYTES) if engine else (RING_BYTES, 0)
        self._writer = Writer(memory, mine, RING_BYTES)
        self._reader = Reader(memory, other, RING_BYTES, most)
        self._told_written = 0
        self._told_read = 0

    def fileno(self) -> int:
        """Readable when there is something to `take`."""
        return self._bell.fileno()

    def put(
        self,
        kind: Kind,
        call: int = 0,
        code: int = 0,
        time: int = 0,
        metadata: bytes = b"",
        body: Buffer | Sequence[Buffer] = b"",
    ) -> None:
        """A record, to go with the next `flush`; parts of its body must not change before."""
        head = _HEAD.pack(kind, code, len(metadata), call, min(time, _NEVER)) + metadata
        if type(body) is bytes:
            self._writer.put((head, body))
        else:
            parts = (body,) if isinstance(body, bytes | bytearray | memoryview) else body
            self._writer.put((head, *(memoryview(part).cast("B") for part in parts if memoryview(part).nbytes)))

    def waiting(self) -> int:
        """Bytes that the other side leaves no room for."""
        return self._writer.waiting()

    def flush(self) -> bool:
        """Write what there is room for and ring; whether that was all."""
        writer, reader = self._writer, self._reader
        done = writer.push()
        if writer.written != self._told_written or reader.read - self._told_read >= RING_BYTES // 4:
            try:
                self._bell.send(_BELL.pack(writer.written, reader.read))
            except BlockingIOError:  # the other side has yet to hear of what was before; the next flush tries again
                return done
            except OSError:  # gone: `take` finds it too
                return done
            self._told_written, self._told_read = writer.written, reader.read
        return done

    def take(self) -> list[Record]:
        """What has come. Raises Gone, Broken."""
        try:
            said = self._bell.recv(_BELL.size << 8)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Gone from error
        if not said:
            raise Gone
        if len(said) % _BELL.size:
            raise Broken(f"{len(said)} bytes from the bell, where each ring of it has {_BELL.size}")
        written, read = _BELL.unpack_from(said, len(said) - _BELL.size)
        self._writer.was_read(read)
        return [_record(message) for message in self._reader.take(written)]

    def close(self) -> None:
        self._bell.close()
        self._reader.close()
        self._memory.close()


def _record(message: bytes | memoryview) -> Record:
    if len(message) < _HEAD.size:
        raise Broken(f"a record of {len(message)} bytes")
    kind, code, length, call, time = _HEAD.unpack_from(message)
    begin = _HEAD.size + length
    if begin > len(message):
        raise Broken(f"{length} bytes of metadata in a record of {len(message)}")
    metadata = bytes(message[_HEAD.size : begin]) if length else b""
    return Record(
        kind, code, call, time, metadata, memoryview(message)[begin:] if len(message) > LARGE else message[begin:]
    )


def packed(metadata: Metadata) -> bytes:
    if not metadata:
        return b""
    pairs = [(key, value.decode("latin-1") if isinstance(value, bytes) else value) for key, value in metadata]
    return json.dumps(pairs).encode()


def unpacked(data: bytes) -> Metadata:
    """Raises Broken."""
    if not data:
        return ()
    try:
        pairs = [(str(key), str(value)) for key, value in json.loads(data)]
        return tuple((key, value.encode("latin-1") if key.endswith("-bin") else value) for key, value in pairs)
    except (ValueError, TypeError) as error:
        raise Broken(f"metadata that cannot be read: {error}") from None
