"""What of a call's headers is metadata."""

from __future__ import annotations

from server.rpc.http2.framing import metadata_of


def test_metadata_is_what_is_not_grpc_s_own() -> None:
    own = [(b":path", b"/a"), (b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"user-agent", b"x")]
    own += [(b"grpc-timeout", b"1S"), (b"grpc-encoding", b"gzip")]
    mine = [(b"tenant", b"a"), (b"test", b"b"), (b"user-agent-hint", b"c"), (b"k-bin", b"AAE")]
    expected = (("tenant", "a"), ("test", "b"), ("user-agent-hint", "c"), ("k-bin", b"\x00\x01"))
    assert metadata_of([*own, *mine]) == expected
