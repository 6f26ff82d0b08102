"""What a front may not say: each is refused, whatever the order."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from logging import INFO, WARNING

import pytest

from server.rpc.call import Route
from server.rpc.fronts.link import Kind
from server.rpc.fronts.loop import Loop
from server.rpc.fronts.peer import Peer, described
from server.rpc.fronts.ring import Broken
from tests.server.core import logged
from tests.server.rpc.fronts.conftest import Pair
from tests.server.rpc.transports import StandIn, path

ROUTES: dict[str, Route] = StandIn().routes()
CODES = {name: number for number, (name, _, _) in enumerate(described(ROUTES))}
HOLD, OPEN, NOTHING = (CODES[path(name)] for name in ("hold", "open", "nothing"))


def line(*parts: object) -> bytes:
    return json.dumps(parts).encode()


class OneSided(Peer):
    """A peer whose process does nothing and whose other side is here."""

    def __init__(self) -> None:
        self.service = StandIn()
        self.pair = Pair()
        self.idle = Loop(lambda: None)
        self.idle.start()
        process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        door, self.far_door = socket.socketpair()
        pools = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        routes = tuple(self.service.routes().values())
        super().__init__(0, process, self.pair.engine, door, self.idle, routes, pools, 1000)

    def says(self, kind: int, call: int = 0, code: int = 0, body: bytes = b"") -> None:
        self.pair.front.put(kind, call, code, body=body)  # type: ignore[arg-type]
        self.pair.front.flush()
        self.read()

    def lose(self) -> None:
        self.pair.front._reader.close()  # which has the same memory here
        super().lose()

    def close(self) -> None:
        self.lose()
        self.process.wait()
        self.far_door.close()
        self.pair.bells[1].close()
        self.idle.end()
        for pool in (self.waiters, self.decoders):
            pool.shutdown()


@pytest.fixture
def peer() -> Iterator[OneSided]:
    found = OneSided()
    yield found
    found.close()


@pytest.mark.parametrize(
    ("kind", "call", "code", "body"),
    [
        (0, 0, 0, b""),
        (255, 0, 0, b""),
        (Kind.SETUP, 0, 0, b"{}"),
        (Kind.ANSWER, 1, 0, b""),
        (Kind.CALL, 1, len(ROUTES), b""),
        (Kind.CALL, 1, OPEN, b""),
        (Kind.CALL, 1, NOTHING, b""),
        (Kind.OPEN, 1, HOLD, b""),
        (Kind.OPEN, 1, NOTHING, b""),
        (Kind.CLOSED, 1, 0, b""),
        (Kind.LOG, 0, WARNING, b"\xff"),
        (Kind.LOG, 0, WARNING, b"{}"),
        (Kind.LOG, 0, WARNING, b"[" * 100_000),
        (Kind.LOG, 0, WARNING, line("text")),
        (Kind.LOG, 0, WARNING, line("text", [])),
        (Kind.LOG, 0, WARNING, line("text", {"event": 1})),
        (Kind.LOG, 0, WARNING + 1, line("text", {})),
    ],
)
def test_what_a_front_never_says_is_refused(peer: OneSided, kind: int, call: int, code: int, body: bytes) -> None:
    with pytest.raises(Broken):
        peer.says(kind, call, code, body)


def test_a_call_that_is_begun_twice_is_refused(peer: OneSided) -> None:
    peer.says(Kind.CALL, 1, HOLD)
    for kind, code in ((Kind.CALL, HOLD), (Kind.OPEN, OPEN)):
        with pytest.raises(Broken, match="call 1 a second time"):
            peer.says(kind, 1, code)
    assert len(peer.calls) == 1


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.HALF_CLOSE, Kind.CANCEL])
def test_what_is_said_of_a_call_that_has_ended_is_nothing(peer: OneSided, kind: Kind) -> None:
    peer.says(kind, 1)
    peer.says(Kind.CALL, 1, HOLD)
    peer.says(Kind.CANCEL, 1)
    assert peer.service.held.get().cancelled()
    peer.says(kind, 1)
    assert not peer.calls


def test_a_lost_front_loses_its_calls_and_nothing_that_comes_later_matters(peer: OneSided) -> None:
    peer.says(Kind.CALL, 1, HOLD)
    peer.says(Kind.OPEN, 2, OPEN)
    held, opened = peer.service.held.get(), peer.service.opened.get()
    drained = peer.drain(1)
    peer.lose()
    assert held.cancelled()
    assert opened.cancelled()
    assert drained.result(0) is True, "there is nothing to wait for"
    with pytest.raises(OSError, match="before it served"):
        peer.up.result(0)
    held.call.complete(lambda: b"")
    opened.call.send(b"")
    opened.call.end()
    peer.idle.call(lambda: None)
    assert peer.process.wait() != 0


def test_lines_of_its_log_keep_their_level_and_fields(peer: OneSided) -> None:
    with logged() as records:
        peer.says(Kind.LOG, 0, WARNING, line("text", {"number": 1, "front": "me"}))
        peer.says(Kind.LOG, 0, INFO, line("not a warning", {}))
    (record,) = records
    assert record.getMessage() == "text"
    assert record.fields == {"number": 1, "front": 0}  # type: ignore[attr-defined]


def test_answers_beyond_what_may_wait_are_refused_one_by_one(peer: OneSided) -> None:
    for number in (1, 2):
        peer.says(Kind.CALL, number, CODES[path("quick")], bytes(2000))
    assert not peer.calls
    peer.flush()
    kinds = [(record.kind, record.code) for record in peer.pair.front.take()]
    assert kinds == [(Kind.ANSWER, 0), (Kind.END, 8)]
    peer.says(Kind.CALL, 3, CODES[path("quick")], bytes(2000))
    peer.flush()
    assert [record.kind for record in peer.pair.front.take()] == [Kind.ANSWER]
