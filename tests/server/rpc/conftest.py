"""Every test that takes `kind` runs over both transports; `served` is one of them with the stand-in's handlers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.rpc.limits import Limits
from tests.server.rpc.transports import KINDS, Served, StandIn, serving

ANY_PINGS = Limits(ping_strikes=0)
"""Raw clients ping to learn that what they sent has been read."""


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def shared(kind: str) -> Iterator[Served]:
    """For tests that leave nothing behind."""
    with serving(kind, StandIn(), ANY_PINGS) as found:
        yield found


@pytest.fixture
def served(kind: str) -> Iterator[Served]:
    with serving(kind, StandIn(), ANY_PINGS) as found:
        yield found


@pytest.fixture
def own() -> Iterator[Served]:
    """Our own transport, for what grpcio's server has no limit or no exact answer for."""
    with serving("http2", StandIn(), ANY_PINGS) as found:
        yield found
