"""The beginning of a TLS connection, a step at a time."""

from __future__ import annotations

import enum
import ssl


class Waits(enum.Enum):
    """What a handshake needs to go on."""

    NOTHING = enum.auto()
    READABLE = enum.auto()
    WRITABLE = enum.auto()


def step(sock: ssl.SSLSocket) -> Waits:
    """NOTHING when it is done. Raises OSError where it fails, or the client does not speak HTTP/2."""
    try:
        sock.do_handshake()
    except ssl.SSLWantReadError:
        return Waits.READABLE
    except ssl.SSLWantWriteError:
        return Waits.WRITABLE
    if sock.selected_alpn_protocol() != "h2":
        raise OSError("the client does not ask for h2 (ALPN)")
    return Waits.NOTHING
