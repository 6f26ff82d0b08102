"""A transport's life: where it listens, how it drains and stops, and that ending loses nothing."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from server.rpc.http2 import Http2Transport
from server.rpc.limits import MIB, Limits
from server.rpc.service import SHUTTING_DOWN
from server.rpc.status import Code
from tests.server.rpc.raw import framed, raw
from tests.server.rpc.transports import WAIT, Served, StandIn, begun, made, refused, serving, unary

# --- where it listens ---


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::"])
def test_it_listens_on_addresses_and_names(kind: str, address: str) -> None:
    with serving(kind, address=address) as served:
        assert served.port > 0
        for target in {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}.get(address, [address]):
            with Served(kind, None, None, target, served.port).channel() as channel:
                assert unary(channel, "quick", b"x") == b"x"


def test_it_listens_on_a_unix_socket(kind: str, tmp_path: Path) -> None:
    where = tmp_path / "grpc.sock"
    for _ in range(2):  # a second time in the same place
        with serving(kind, address=f"unix:{where}") as served:
            assert served.port == 0
            with served.channel() as channel:
                assert unary(channel, "quick", b"x") == b"x"
        assert not where.exists()


def test_a_socket_file_left_by_a_server_that_died_is_no_hindrance(kind: str, tmp_path: Path) -> None:
    where = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(where))
    with serving(kind, address=f"unix:{where}") as served, served.channel() as channel:
        assert unary(channel, "quick", b"x") == b"x"


def test_what_is_no_socket_is_not_removed(kind: str, tmp_path: Path) -> None:
    where = tmp_path / "grpc.sock"
    where.write_text("precious")
    transport = made(kind, StandIn(), Limits())
    with pytest.raises(OSError, match=r"grpc\.sock|in use"):
        transport.start(f"unix:{where}", 0)
    transport.stop(0)
    assert where.read_text() == "precious"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_taken_port_is_an_error(kind: str, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as taken:
        transport = made(kind, StandIn(), Limits())
        with pytest.raises(OSError, match=r"listen|in use"):
            transport.start(address, taken.getsockname()[1])
        transport.stop(0)


@pytest.mark.parametrize("other", ["grpcio", "http2"])
def test_a_port_served_by_either_transport_is_taken(kind: str, other: str) -> None:
    with serving(other) as first:
        transport = made(kind, StandIn(), Limits())
        with pytest.raises(OSError, match=r"listen|in use"):
            transport.start("127.0.0.1", first.port)
        transport.stop(0)
        with first.channel() as channel:
            assert unary(channel, "quick", b"x") == b"x"


@pytest.mark.parametrize("address", ["no.such.host.invalid", "192.0.2.1", "unix:/no/such/folder/socket"])
def test_an_address_that_cannot_be_had_is_an_error(kind: str, address: str) -> None:
    transport = made(kind, StandIn(), Limits())
    with pytest.raises(OSError, match=r"."):
        transport.start(address, 0)
    transport.stop(0)


def test_the_port_can_be_had_again_at_once(kind: str) -> None:
    with serving(kind) as served, served.channel() as channel:
        port = served.port
        assert unary(channel, "quick", b"x") == b"x"
    for _ in range(3):
        with serving(kind, port=port) as again, again.channel() as channel:
            assert again.port == port
            assert unary(channel, "quick", b"x") == b"x"


def test_a_client_finds_a_restarted_server_by_itself(kind: str) -> None:
    with serving(kind) as served:
        port = served.port
        channel = grpc.insecure_channel(served.url, (("grpc.max_reconnect_backoff_ms", 100),))
        assert unary(channel, "quick", b"x") == b"x"
    with channel, serving(kind, port=port):
        assert unary(channel, "quick", b"y", wait_for_ready=True) == b"y"


# --- drain ---


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(action()))
    thread.start()
    return thread, results


def test_drain_waits_for_accepted_calls_and_refuses_new_ones(served: Served) -> None:
    with raw(served) as client, served.channel() as channel:
        stream, held = begun(served, client, "hold")
        drainer, drained = in_thread(lambda: served.transport.drain(WAIT))
        while not served.service.draining:
            threading.Event().wait(0.001)
        assert refused(lambda: unary(channel, "deferred")) == (grpc.StatusCode.UNAVAILABLE, SHUTTING_DOWN)
        assert unary(channel, "quick", b"x") == b"x", "health and readiness are still told"
        assert drained == []
        held.call.complete(lambda: b"accepted")
        assert client.answer(stream).messages == [b"accepted"]
        drainer.join()
    assert drained == [True]


def test_drain_gives_up_after_its_time(served: Served) -> None:
    with raw(served) as client:
        stream, held = begun(served, client, "hold")
        assert served.transport.drain(0.2) is False
        held.call.complete(lambda: b"late, and still answered")
        assert client.answer(stream).messages == [b"late, and still answered"]
        assert served.transport.drain(WAIT) is True


def test_drain_is_done_at_once_where_nothing_waits(served: Served) -> None:
    with served.channel() as channel:
        unary(channel, "deferred")
        assert served.transport.drain(WAIT) is True


def test_our_own_drain_sends_clients_elsewhere(own: Served) -> None:
    """GOAWAY, first with the last stream there may be: what is under way goes on, new calls take a new connection."""
    with raw(own) as client:
        stream, held = begun(own, client, "hold")
        drainer, _ = in_thread(lambda: own.transport.drain(WAIT))
        client.pump(lambda: len(client.goaways()) == 2)
        assert [event.error_code for event in client.goaways()] == [0, 0]
        assert [event.last_stream_id for event in client.goaways()] == [(1 << 31) - 1, stream]
        held.call.complete(lambda: b"x")
        assert client.answer(stream).messages == [b"x"]
        drainer.join()
        client.until_closed()


def test_clients_that_connect_as_the_drain_begins_are_told(own: Served) -> None:
    """At once, and not by their deadline: see `Connection.go_away`."""
    with raw(own) as client:
        _, held = begun(own, client, "hold")
        for _ in range(20):
            with own.channel() as channel:
                future = channel.unary_unary("/test.Service/deferred").future(b"x", timeout=WAIT)
                drainer, _ = in_thread(lambda: own.transport.drain(0))
                assert future.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
                drainer.join()
        held.call.complete(lambda: b"x")


@pytest.mark.parametrize("round_", range(3))
def test_ending_under_load_loses_nothing(kind: str, round_: int) -> None:
    """Clients that never pause: each call is answered, or refused with a status that sends it elsewhere."""
    outcomes: Counter[str] = Counter()
    begun_, enough = threading.Semaphore(0), threading.Event()
    service = StandIn()

    def client(served: Served) -> None:
        with served.channel() as channel:
            while not enough.is_set() or outcomes["UNAVAILABLE"] < 8:
                try:
                    unary(channel, "thread", b"x")
                    outcomes["answered"] += 1
                    begun_.release()
                except grpc.RpcError as error:
                    code = error.code().name
                    outcomes[code if code == "UNAVAILABLE" else f"{code} {error.details()}"] += 1

    with serving(kind, service) as served:
        clients = [threading.Thread(target=client, args=(served,)) for _ in range(8)]
        for thread in clients:
            thread.start()
        for _ in range(200):
            assert begun_.acquire(timeout=WAIT)
        assert served.transport.drain(WAIT) is True
        enough.set()
        served.transport.stop(5)
        for thread in clients:
            thread.join()
        served.transport.stop = lambda grace: None
    assert outcomes["answered"] == service.accepted >= 200
    # of the refused ones grpcio cancels those that it has read and not yet handed over
    others = {"CANCELLED CANCELLED"} if kind == "grpcio" else set()
    assert set(outcomes) - others == {"answered", "UNAVAILABLE"}


# --- stop ---


def test_stop_ends_what_is_open_after_its_grace(kind: str) -> None:
    transport = made(kind, StandIn(), Limits())
    served = Served(kind, transport, None, "127.0.0.1", transport.start("127.0.0.1", 0))
    served.service = transport._service
    with raw(served) as client:
        _, held = begun(served, client, "hold")
        _, opened = begun(served, client, "open")
        transport.stop(0.2)
        assert held.cancelled()
        assert opened.cancelled()
        client.until_closed()
        assert client.closed
    assert served.service.draining
    assert served.service.ended
    with pytest.raises(OSError, match="refused"):
        served.connect()
    held.call.complete(lambda: b"nobody is there")
    opened.call.send(b"nobody is there")


def test_stop_waits_for_what_ends_within_its_grace(kind: str) -> None:
    service = StandIn()
    transport = made(kind, service, Limits())
    served = Served(kind, transport, service, "127.0.0.1", transport.start("127.0.0.1", 0))
    with raw(served) as client:
        stream, held = begun(served, client, "hold")
        stopper, _ = in_thread(lambda: transport.stop(WAIT))
        client.pump(lambda: bool(client.goaways()))
        held.call.complete(lambda: b"in time")
        assert client.answer(stream).messages == [b"in time"]
        client.until_closed()
        client.socket.close()
        stopper.join()


def test_stop_lets_a_slow_reader_have_its_answer(kind: str) -> None:
    service = StandIn()
    transport = made(kind, service, Limits())
    served = Served(kind, transport, service, "127.0.0.1", transport.start("127.0.0.1", 0))
    with raw(served, {4: 65535}) as client:
        stream = client.request("large", framed(b"%d" % (8 * MIB)))
        client.pump(lambda: len(client.answers[stream].body) > 0)
        stopper, _ = in_thread(lambda: transport.stop(WAIT))
        answer = client.answer(stream)
        assert (answer.status, len(answer.messages[0])) == (Code.OK, 8 * MIB)
        client.socket.close()
        stopper.join()


def test_stop_does_not_cost_a_slow_reader_what_is_already_on_its_way() -> None:
    """All of it is in the sockets' buffers when the server is done; the client still sends, and reads later."""
    service = StandIn()
    transport = made("http2", service, Limits())
    served = Served("http2", transport, service, "127.0.0.1", transport.start("127.0.0.1", 0))
    with raw(served, {4: 16 * MIB}) as client:
        client.http2.set_local_window_size(16 * MIB)
        stream = client.request("large", framed(b"%d" % MIB))
        client.pump(lambda: len(client.answers[stream].body) > 0)
        stopper, _ = in_thread(lambda: transport.stop(2))
        client.socket.settimeout(WAIT)
        for _ in range(20):
            client.http2.ping()
            client.flush()
            threading.Event().wait(0.01)
        answer = client.answer(stream)
        assert (answer.status, len(answer.messages[0])) == (Code.OK, MIB)
        client.socket.close()
        stopper.join()


def test_stop_right_after_start(kind: str) -> None:
    for _ in range(5):
        with serving(kind):
            pass


def test_no_thread_and_no_descriptor_stays_behind(kind: str) -> None:
    with serving(kind) as served, served.channel() as channel:
        unary(channel, "slow")
    before = {thread for thread in threading.enumerate() if thread.name.startswith("rpc")}
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with serving(kind) as served, raw(served) as client:
            assert client.call("slow", b"x").messages == [b"x"]
    after = {thread for thread in threading.enumerate() if thread.name.startswith("rpc") and thread.is_alive()}
    for thread in after - before:
        thread.join(WAIT)  # of a pool: told to end, not waited for
        assert not thread.is_alive()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2


@pytest.mark.parametrize(("busy_poll_us", "sleeps"), [(0, True), (60_000_000, False)])
def test_a_busy_loop_looks_for_the_next_call_before_it_sleeps(
    busy_poll_us: int, sleeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    real = Http2Transport._timeout

    def counted(self: Http2Transport) -> float:
        slept.append(real(self))
        return slept[-1]

    monkeypatch.setattr(Http2Transport, "_timeout", counted)
    transport = Http2Transport(StandIn(), busy_poll_us=busy_poll_us)
    served = Served("http2", transport, StandIn(), "127.0.0.1", transport.start("127.0.0.1", 0))
    try:
        with raw(served) as client:
            assert client.call("quick", b"first").messages == [b"first"]
            before = len(slept)
            for _ in range(20):
                assert client.call("quick", b"again").messages == [b"again"]
            assert (len(slept) > before) is sleeps
    finally:
        transport.stop(0)  # and a loop that looks is found at once


def test_a_loop_with_an_open_call_sleeps_however_long_it_may_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a model must not take the core that it runs on."""
    asleep = threading.Event()
    real = Http2Transport._timeout
    service = StandIn()
    transport = Http2Transport(service, busy_poll_us=60_000_000)

    def seen(self: Http2Transport) -> float:
        if self.in_flight:
            asleep.set()
        return real(self)

    monkeypatch.setattr(Http2Transport, "_timeout", seen)
    served = Served("http2", transport, service, "127.0.0.1", transport.start("127.0.0.1", 0))
    try:
        with raw(served) as client:
            _, held = begun(served, client, "hold")
            assert asleep.wait(WAIT)
            held.call.complete(lambda: b"done")
    finally:
        transport.stop(0)
