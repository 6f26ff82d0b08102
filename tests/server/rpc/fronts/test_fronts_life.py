"""Fronts and engines that die, fronts that write nonsense, connections shared out: what is left goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import grpc
import psutil
import pytest

from server.rpc.fronts import process, transport
from server.rpc.fronts.transport import FrontsTransport
from server.rpc.limits import Limits
from server.rpc.tls import Tls
from tests.server.core import logged
from tests.server.harness import eventually, write_entry
from tests.server.rpc.fronts.conftest import FRONTS, fronted
from tests.server.rpc.raw import framed, raw
from tests.server.rpc.transports import WAIT, Served, StandIn, unary

ROOT = Path(__file__).resolve().parents[4]
NOTHING = threading.Event()


def serving(served: Served) -> bool:
    return all(peer.serves for peer in list(served.transport._peers.values()))


def kill(served: Served, number: int) -> int:
    pid: int = served.transport.processes[number]
    os.kill(pid, signal.SIGKILL)
    return pid


def test_connections_go_to_the_front_that_has_the_fewest(served: Served) -> None:
    clients = [raw(served) for _ in range(6)]
    for client in clients:
        client.ping()
    assert served.transport.connections == {0: 3, 1: 3}
    for client in clients[0::2]:  # all of one front
        client.socket.close()
    eventually(lambda: sum(served.transport.connections.values()) == 3, NOTHING)
    more = [raw(served) for _ in range(3)]
    for client in more:
        client.ping()
    assert served.transport.connections == {0: 3, 1: 3}
    for client in (*clients, *more):
        client.socket.close()
    eventually(lambda: not sum(served.transport.connections.values()), NOTHING)


def test_the_limit_of_connections_is_that_of_all_fronts_together() -> None:
    with fronted(limits=Limits(connections=4)) as served, logged() as records:
        clients = [raw(served) for _ in range(4)]
        assert [client.call("quick", b"x").messages for client in clients] == [[b"x"]] * 4
        late = raw(served)
        stream = late.request("quick", framed(b"late"))
        eventually(lambda: any("4 connections are open" in r.getMessage() for r in records), NOTHING)
        clients.pop().socket.close()
        assert late.answer(stream).messages == [b"late"]
        for client in (*clients, late):
            client.socket.close()


def test_a_front_that_is_killed_takes_its_own_calls_alone_and_comes_back(served: Served) -> None:
    with raw(served) as doomed, raw(served) as spared, logged() as records:
        doomed.request("hold", framed(b"doomed"))
        held = served.held()
        stream = spared.request("hold", framed(b"spared"))
        other = served.held()
        before = served.transport.processes
        pid = kill(served, 0)
        assert held.cancelled(), "the engine's side of it is gone"
        doomed.until_closed()
        held.call.complete(lambda: b"to nobody")
        other.call.complete(lambda: b"as if nothing had happened")
        assert spared.answer(stream).messages == [b"as if nothing had happened"]
        assert served.transport.in_flight == 0
        with served.channel() as channel:  # goes to the other one, while the first is away
            assert unary(channel, "deferred", b"x") == b"x"
        eventually(lambda: served.transport.processes.get(0, pid) != pid and serving(served), NOTHING)
        assert served.transport.processes[1] == before[1]
        assert [r.getMessage() for r in records] == ["a front ended and is started again"]
    with raw(served) as first, raw(served) as second:
        for client in (first, second):
            assert client.call("deferred", b"x").messages == [b"x"]
        assert served.transport.connections == {0: 1, 1: 1}


def test_a_front_that_is_killed_under_load_costs_only_what_it_had(served: Served) -> None:
    outcomes: Counter[str] = Counter()
    again, ending = threading.Semaphore(0), threading.Event()

    def client(number: int) -> None:
        with served.channel(("grpc.max_reconnect_backoff_ms", 100)) as channel:
            while not ending.is_set():
                body = b"%d %d" % (number, outcomes.total())
                try:
                    assert unary(channel, "thread", body) == body
                    outcomes["answered"] += 1
                    again.release()
                except grpc.RpcError as error:
                    outcomes[error.code().name] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in clients:
        thread.start()
    for number in (0, 1, 0):
        for _ in range(100):
            assert again.acquire(timeout=WAIT)
        pid = kill(served, number)
        eventually(lambda: served.transport.processes.get(number, pid) != pid and serving(served), NOTHING)  # noqa: B023
    ending.set()
    for thread in clients:
        thread.join()
    assert set(outcomes) <= {"answered", "UNAVAILABLE"}
    eventually(lambda: served.transport.in_flight == 0, NOTHING)
    assert served.transport.drain(WAIT)


def test_fronts_end_when_the_engine_is_killed(tmp_path: Path) -> None:
    write_entry(tmp_path)
    command = [sys.executable, "-m", "server", "--model-repository", str(tmp_path), "--grpc-port", "0",
               "--allow-metrics", "false", "--grpc-front-processes", "2"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as engine:
        assert engine.stdout
        next(line for line in engine.stdout if line.startswith("ready"))
        fronts = psutil.Process(engine.pid).children()
        assert len(fronts) == 2
        engine.kill()
        _, alive = psutil.wait_procs(fronts, WAIT)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_meant_for_the_engine_does_not_end_its_fronts(served: Served, number: int) -> None:
    """A terminal and an init system send it to all processes of a group."""
    before = served.transport.processes
    with raw(served) as client:
        for pid in before.values():
            os.kill(pid, number)
        assert client.call("deferred", b"x").messages == [b"x"]
    assert served.transport.processes == before


def test_a_front_that_writes_nonsense_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is started begins a call, and then fills its ring with noise."""
    real, started = process.command, iter([[sys.executable, "-m", "tests.server.rpc.fronts.mad"]])
    monkeypatch.setattr(process, "command", lambda: next(started, None) or real())
    with logged() as records, fronted() as served:
        held = served.held()
        assert held.body == b"from the mad one"
        assert held.cancelled()
        eventually(lambda: len(served.transport.processes) == FRONTS and serving(served), NOTHING)
        with raw(served) as client, raw(served) as other:
            assert client.call("deferred", b"x").messages == [b"x"]
            assert other.call("deferred", b"x").messages == [b"x"]
        texts = [record.getMessage() for record in records]
        assert "a front broke its word and is ended" in texts
        assert "a front ended and is started again" in texts


def test_a_front_that_cannot_start_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "command", lambda: [sys.executable, "-c", "import sys; sys.exit(3)"])
    found = FrontsTransport(StandIn(), Limits(), None, FRONTS)
    with pytest.raises(OSError, match="ended before it served"):
        found.start("127.0.0.1", 0)
    found.stop(0)
    assert not [child for child in psutil.Process().children() if "fronts" in " ".join(child.cmdline())]


def test_a_front_that_cannot_start_again_is_tried_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE_SECS", 0.001)
    with logged() as records, fronted() as served:
        monkeypatch.setattr(process, "command", lambda: [sys.executable, "-c", "import sys; sys.exit(3)"])
        kill(served, 0)
        eventually(lambda: len(records) >= 4, NOTHING)
        monkeypatch.undo()
        pauses = [record.fields["pause"] for record in records if hasattr(record, "fields")]
        assert pauses == [0.001 * 2**number for number in range(len(pauses))]
        with raw(served) as client:
            assert client.call("deferred", b"x").messages == [b"x"], "the other front has all connections"
        eventually(lambda: len(served.transport.processes) == FRONTS and serving(served), NOTHING)


def test_certificates_that_a_front_cannot_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("no certificate")
    found = FrontsTransport(StandIn(), Limits(), Tls(tmp_path / "pem", tmp_path / "pem"), 1)
    with pytest.raises(OSError, match=r"TLS: .*cannot be used"):
        found.start("127.0.0.1", 0)
    found.stop(0)


def test_what_fronts_log_is_in_the_log_of_the_engine() -> None:
    """A client that takes nothing of a stream: it is its front that notices."""
    with logged() as records, fronted(limits=Limits(unread_bytes=1000), fronts=1) as served, raw(served) as client:
        client.request("open", framed(b"x"), end=False)
        opened = served.opened()
        opened.call.send(bytes(1 << 20))
        assert opened.cancelled()
        (record,) = [r for r in records if "does not read" in r.getMessage()]
        assert record.levelname == "WARNING"
        fields = record.fields  # type: ignore[attr-defined]
        assert fields["limit"] == 1000
        assert fields["front"] == 0
