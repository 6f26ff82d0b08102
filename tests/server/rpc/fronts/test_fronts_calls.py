"""Calls through front processes: what a client sees is what one front end inside the server would have shown it."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest

from server.errors import NotFound
from server.rpc.call import Buffer, Call, Deferred, Quick
from server.rpc.fronts.link import RING_BYTES
from server.rpc.limits import MIB, Limits
from server.rpc.status import CODES, TEXT_LIMIT
from tests.server.harness import eventually
from tests.server.rpc.fronts.conftest import fronted
from tests.server.rpc.raw import framed, raw
from tests.server.rpc.transports import WAIT, Served, StandIn, path, refused, serving, unary

KINDS = ("quick", "slow", "parts", "deferred", "thread", "released")
SIZES = [
    *((name, size) for name in KINDS for size in (0, 1, 1000, 70_000, MIB)),
    *(("deferred", size) for size in (RING_BYTES // 4 + 1, RING_BYTES + 1, 5 * RING_BYTES)),
]


def body(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_any_size_goes_there_and_back(shared: Served, name: str, size: int) -> None:
    with shared.channel() as channel:
        assert unary(channel, name, body(size)) == body(size)


def test_parts_that_are_views_arrive_joined(shared: Served) -> None:
    with shared.channel() as channel:
        assert unary(channel, "parts", b"abc") == b"abc"


FAILING = (
    "missing",
    "defect",
    "slow_defect",
    "deferred_defect",
    "answer_defect",
    "deferred_missing",
    "nothing",
    "none",
)
TEXTS = (b"plain", "é ☺ 😈 \t\r\n %41 \\x".encode(), b"x" * TEXT_LIMIT, b"y" * (TEXT_LIMIT + 1), b"")


@pytest.mark.parametrize("name", FAILING)
def test_errors_are_those_of_a_server_without_fronts(shared: Served, name: str) -> None:
    with serving("http2", StandIn()) as other, shared.channel() as channel, other.channel() as direct:
        for text in TEXTS:
            assert refused(partial(unary, channel, name, text)) == refused(partial(unary, direct, name, text))


def test_every_error_keeps_its_code() -> None:
    errors = list(CODES)

    def fail(found: Buffer) -> bytes:
        raise errors[int(bytes(found))](f"number {bytes(found).decode()}")

    with fronted(StandIn({path("fail"): Quick(fail)}), fronts=1) as served, raw(served) as client:
        for number, error in enumerate(errors):
            answer = client.call("fail", b"%d" % number)
            assert (answer.status, answer.text) == (CODES[error], f"number {number}")


def test_metadata_goes_both_ways() -> None:
    """Before an answer and with it, before an error and with it."""
    given = (("key", "value"), ("place", "a"), ("raw-bin", b"\0\xff"))

    def echo(found: Buffer, call: Call) -> None:
        call.send_metadata(tuple((f"initial-{key}", value) for key, value in call.metadata))
        call.set_trailers(tuple((f"trailing-{key}", value) for key, value in call.metadata))
        call.complete(lambda: bytes(found) if found else missing())

    def missing() -> bytes:
        raise NotFound("nothing")

    with fronted(StandIn({path("echo"): Deferred(echo)}), fronts=1) as served, served.channel() as channel:
        call = channel.unary_unary(path("echo"))
        for asked in (b"x", b""):
            found: Any = call.future(asked, metadata=given, timeout=WAIT)
            initial = {key: value for key, value in found.initial_metadata() if key.startswith("initial")}
            trailing = {key: value for key, value in found.trailing_metadata() if key.startswith("trailing")}
            assert initial == {f"initial-{key}": value for key, value in given}
            assert trailing == {f"trailing-{key}": value for key, value in given}
            assert found.code() is (grpc.StatusCode.OK if asked else grpc.StatusCode.NOT_FOUND)


def test_the_handler_knows_the_deadline_and_the_client_hears_of_it(served: Served) -> None:
    with served.channel() as channel, raw(served) as client:
        before = time.monotonic_ns()
        late = client.request("hold", framed(b"x"), fields=[("grpc-timeout", "300m")])
        held = served.held()
        assert before + 300_000_000 <= held.call.deadline_ns <= time.monotonic_ns() + 300_000_000
        assert client.answer(late).status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert held.cancelled(), "and the handler that nobody waits any more"
        endless = channel.unary_unary(path("hold")).future(b"x")
        assert served.held().call.deadline_ns is None
        assert served.transport.in_flight == 1
        assert not endless.done()


def test_a_call_that_is_taken_back_is_taken_back_from_its_handler(served: Served) -> None:
    with served.channel() as channel:
        call = channel.unary_unary(path("hold")).future(b"x", timeout=WAIT)
        held = served.held()
        call.cancel()
        assert held.cancelled()
        assert served.transport.in_flight == 0
        held.call.complete(lambda: b"too late, and no harm done")
        assert unary(channel, "deferred", b"x") == b"x"
    assert held.notices.empty(), "told once"


def test_all_calls_of_a_client_that_goes_are_taken_back(served: Served) -> None:
    with raw(served) as client:
        for _ in range(100):
            client.submit("hold", framed(b"x"))
        client.flush()
        held = [served.held() for _ in range(100)]
    assert all(found.cancelled() for found in held)
    assert served.transport.in_flight == 0


def test_what_has_been_answered_is_freed_at_once() -> None:
    """Handlers hold their call, and it what they do on cancel: a circle that would keep large requests for long."""
    found: list[weakref.ref[Buffer]] = []

    def handle(body: Buffer, call: Call) -> None:
        found.append(weakref.ref(body))
        call.on_cancel(lambda: (body, call))
        call.complete(lambda: b"")

    gc.disable()
    try:
        with fronted(StandIn({path("handle"): Deferred(handle)}), fronts=1) as served, served.channel() as channel:
            for _ in range(3):
                unary(channel, "handle", bytes(MIB))
            eventually(lambda: all(body() is None for body in found), threading.Event())
    finally:
        gc.enable()
    assert len(found) == 3


def test_streams_go_both_ways_and_end_as_they_ended(shared: Served) -> None:
    messages = [body(size) for size in (1, 100_000, 0, 3 * MIB)]
    with shared.channel() as channel:
        stream = channel.stream_stream(path("stream"))
        assert list(stream(iter(messages), timeout=WAIT)) == messages
        assert list(stream(iter([]), timeout=WAIT)) == []
        failing = channel.stream_stream(path("stream_defect"))
        assert refused(lambda: list(failing(iter([b"x"]), timeout=WAIT)))[0] is grpc.StatusCode.INTERNAL


def test_a_stream_that_is_open_ends_with_its_client(served: Served) -> None:
    with served.channel() as channel:
        answers = channel.stream_stream(path("open"))(iter([b"a", b"b"]), timeout=WAIT)
        opened = served.opened()
        assert [opened.next() for _ in range(3)] == [b"a", b"b", None]
        opened.call.send(b"one")
        assert next(answers) == b"one"
        answers.cancel()
        assert opened.cancelled()
        opened.call.send(b"to nobody")
        opened.call.end()
    assert served.transport.in_flight == 0


def test_many_clients_each_get_their_own_answers(shared: Served) -> None:
    """Over several connections, so that both fronts have some; of all sizes and kinds at once."""

    def client(seed: int) -> bool:
        rng = random.Random(seed)
        with shared.channel() as channel:
            calls = [(rng.choice(KINDS), rng.randbytes(rng.choice((10, 3000, 100_000)))) for _ in range(100)]
            futures = [channel.unary_unary(path(name)).future(sent, timeout=WAIT) for name, sent in calls]
            return all(found.result() == sent for found, (_, sent) in zip(futures, calls, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(8)))
    assert shared.transport.in_flight == 0


def test_what_arrives_together_is_released_together() -> None:
    """One release for what all fronts have brought while the engine was busy."""
    entered, gate = threading.Event(), threading.Event()

    def wait(found: Buffer) -> bytes:
        entered.set()
        assert gate.wait(WAIT)
        return b""

    service = StandIn()
    service._routes = {**service.routes(), path("wait"): Quick(wait)}
    with fronted(service) as served, raw(served) as first:
        clients = [raw(served) for _ in range(8)]
        for client in clients:
            client.ping()
        blocking = first.request("wait", framed(b""))
        assert entered.wait(WAIT)
        streams = [client.request("released", framed(b"x")) for client in clients]
        for client in clients:
            client.ping()  # its front has read the request, and passed it on before it answers
        gate.set()
        for client, stream in zip(clients, streams, strict=True):
            assert client.answer(stream).messages == [b"x"]
            client.socket.close()
        assert first.answer(blocking).messages == [b""]
    assert service.rounds == [8]


def test_clients_wait_while_the_engine_takes_nothing() -> None:
    """More than a ring holds is sent while the engine's thread is held: nothing is lost, and no front runs full."""
    entered, gate = threading.Event(), threading.Event()

    def wait(found: Buffer) -> bytes:
        entered.set()
        assert gate.wait(WAIT)
        return b""

    service = StandIn()
    service._routes = {**service.routes(), path("wait"): Quick(wait)}
    with fronted(service, Limits(buffered_bytes=64 * MIB), fronts=1) as served, served.channel() as channel:
        blocking = channel.unary_unary(path("wait")).future(b"", timeout=WAIT)
        assert entered.wait(WAIT)
        sent = [body(MIB // 2 + number) for number in range(8 * RING_BYTES // MIB)]
        calls = [channel.unary_unary(path("deferred")).future(found, timeout=WAIT) for found in sent]
        gate.set()
        assert blocking.result() == b""
        assert [call.result() for call in calls] == sent
