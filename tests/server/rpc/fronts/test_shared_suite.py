"""The suite of all transports over fronts: gRPC's interop cases, starting, draining, ending."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from server.rpc.call import Handlers
from server.rpc.fronts.transport import FrontsTransport
from server.rpc.http2 import Http2Transport
from server.rpc.limits import Limits
from server.rpc.tls import Tls
from tests.server.rpc import transports
from tests.server.rpc.fronts.conftest import FRONTS
from tests.server.rpc.test_conformance import *  # noqa: F403
from tests.server.rpc.test_transport_life import *  # noqa: F403

# these need a status that the fronts' own table of statuses does not have
del test_status_code_and_message, test_special_status_message  # noqa: F821
# and these start many servers to see what the others see too
del test_stop_right_after_start, test_the_port_can_be_had_again_at_once  # noqa: F821


def fronts(service: Handlers, clock: Callable[[], int], limits: Limits, tls: Tls | None) -> FrontsTransport:
    return FrontsTransport(service, limits, tls, FRONTS)


@pytest.fixture(scope="module")
def kind() -> Iterator[str]:
    """Whatever is asked of our own transport is asked of fronts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transports, Http2Transport.__name__, fronts)
        yield "http2"
