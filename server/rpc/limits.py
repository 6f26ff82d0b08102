"""What a client may ask of the gRPC port, in numbers: one frozen value that both transports are made with."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds. What grpcio cannot be told stands with "own transport"."""

    message_bytes: int = 256 * MIB
    """Of one message, before and after its expansion."""
    compression: bool = False
    """Whether compressed messages are taken at all."""
    buffered_bytes: int = 1024 * MIB
    """Of all messages being received and all answers not yet sent, together (own transport)."""
    connections: int = 4096
    """Own transport; never more than the process's limit of descriptors allows, less a reserve for files."""
    streams: int = 1024
    """Open calls of one connection."""
    header_bytes: int = 16 * KIB
    """Of one call's metadata, as HTTP/2 counts them (RFC 9113, 10.5.1)."""
    unread_bytes: int = 4 * MIB
    """What may wait for a client that does not read its stream; beyond it the stream is ended."""
    handshake_secs: float = 10.0
    """From the connection to the client's first SETTINGS, TLS included (own transport)."""
    receive_secs: float = 60.0
    """From a call's headers to the end of its message; streams: from a message's first byte to its last (own)."""
    send_secs: float = 60.0
    """How long a client may take none of what is ready for it (own transport)."""
    keepalive_secs: float = 7200.0
    """Without a frame from the client for so long, it is pinged; 0: never."""
    keepalive_timeout_secs: float = 20.0
    """How long it may take to answer that ping."""
    min_ping_secs: float = 300.0
    """A client that pings more often than this while nothing is sent to it collects strikes (gRPC's gRFC A8)."""
    ping_strikes: int = 2
    """How many of them before the connection is closed; 0: any number."""
