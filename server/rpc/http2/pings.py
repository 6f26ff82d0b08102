"""When a client pings more than it should: gRPC's gRFC A8, server side."""

from __future__ import annotations

from server.rpc.limits import Limits


class Pings:
    """A ping soon after the last, with nothing sent in between, is a strike."""

    __slots__ = ("_last_ns", "_limits", "_strikes")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last_ns: int | None = None
        self._strikes = 0

    def sent(self) -> None:
        """Headers or data go out."""
        self._strikes = 0
        self._last_ns = None

    def too_many(self, now_ns: int) -> bool:
        """A ping has come; whether the connection is to be closed for it."""
        last, self._last_ns = self._last_ns, now_ns
        if last is not None and now_ns - last < self._limits.min_ping_secs * 1e9:
            self._strikes += 1
        return 0 < self._limits.ping_strikes < self._strikes
