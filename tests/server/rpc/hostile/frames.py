"""HTTP/2 by hand: frames that no library would send, and a peer that sends them and watches what comes back."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from tests.server.rpc.raw import framed
from tests.server.rpc.transports import Served, path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def number(value: int, bits: int, first: int = 0) -> bytes:
    """An integer of HPACK with a prefix of `bits` (RFC 7541, 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def text(value: bytes) -> bytes:
    return number(len(value), 7) + value


def literal(name: bytes, value: bytes) -> bytes:
    """A field that enters no table."""
    return b"\0" + text(name) + text(value)


def indexed(name: bytes, value: bytes) -> bytes:
    """A field that enters the dynamic table, as number 62 if it is the last."""
    return b"\x40" + text(name) + text(value)


def head(name: str, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a call."""
    own = (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path(name).encode()), (b":authority", b"test"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    )  # fmt: skip
    return b"".join(literal(*pair) for pair in (*own, *more))


def call(stream: int, name: str = "quick", message: bytes = b"x", *more: tuple[bytes, bytes]) -> bytes:
    """A whole request."""
    return frame(HEADERS, END_HEADERS, stream, head(name, *more)) + frame(DATA, END_STREAM, stream, framed(message))


BEGIN = PREFACE + frame(SETTINGS)


@dataclass(frozen=True)
class Seen:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> int:
        """Of RST_STREAM and GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == RST_STREAM else self.payload[4:8])


class Peer:
    """A connection on which anything may be sent."""

    def __init__(self, served: Served, begin: bytes = BEGIN) -> None:
        self.socket = served.connect()
        if self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.seen: list[Seen] = []
        self.closed = False
        self._rest = b""
        self.send(begin)
        if begin == BEGIN and self.until(SETTINGS):
            self.send(frame(SETTINGS, ACK))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """False when the server has closed."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
        return not self.closed

    def half_close(self) -> None:
        """Nothing more comes."""
        with contextlib.suppress(OSError):  # the server has closed
            self.socket.shutdown(socket.SHUT_WR)

    def flood(self, parts: Iterable[bytes]) -> None:
        """All of it, or until the server has had enough."""
        for part in parts:
            if not self.send(part):
                return

    def read(self) -> bool:
        """Whatever has come; False when the server has closed."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return False
        self._rest += data
        while len(self._rest) >= 9 and len(self._rest) >= 9 + (size := int.from_bytes(self._rest[:3])):
            kind, flags, stream = struct.unpack(">BBI", self._rest[3:9])
            self.seen.append(Seen(kind, flags, stream, self._rest[9 : 9 + size]))
            self._rest = self._rest[9 + size :]
        return True

    def until(self, kind: int, stream: int | None = None) -> Seen | None:
        """The first frame of a kind; None when the server closed without one."""
        while True:
            for seen in self.seen:
                if seen.kind == kind and stream in (None, seen.stream) and not (kind == SETTINGS and seen.flags & ACK):
                    return seen
            if not self.read():
                return None

    def until_closed(self) -> None:
        while self.read():
            pass

    def synchronised(self) -> bool:
        """Whether the server has read all of this and goes on; False when it has closed."""
        if not self.send(frame(PING, payload=b"in order")):
            return False
        while not any(seen.kind == PING and seen.flags & ACK and seen.payload == b"in order" for seen in self.seen):
            if not self.read():
                return False
        self.seen = [seen for seen in self.seen if seen.kind != PING]
        return True
