"""Calls that are not answered in time: deadlines, and clients that take them back or go."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import grpc
import pytest

from server.rpc.status import Code
from tests.server.rpc.raw import framed, raw
from tests.server.rpc.transports import WAIT, Held, Opened, Served, begun, refused, unary

UNITS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}
SLACK_NS = 10**9
"""grpcio has a clock of its own and counts deadlines in milliseconds."""


# --- deadlines ---


@pytest.mark.parametrize(("amount", "unit"), [(1, "H"), (2, "M"), (90, "S"), (90_000, "m"), (90_000_000, "u")])
def test_the_handler_is_told_the_deadline_on_the_server_s_clock(served: Served, amount: int, unit: str) -> None:
    with raw(served) as client:
        before = time.monotonic_ns()
        for name in ("hold", "open"):
            client.request(name, framed(b"x"), end=name == "hold", fields=[("grpc-timeout", f"{amount}{unit}")])
        calls: list[Held] = [served.held(), served.opened()]
        after = time.monotonic_ns()
    span = amount * UNITS[unit]
    for held in calls:
        assert before + span - SLACK_NS <= held.call.deadline_ns <= after + span + SLACK_NS


def test_without_a_timeout_there_is_no_deadline(served: Served) -> None:
    with raw(served) as client:
        client.request("hold", framed(b"x"))
        assert served.held().call.deadline_ns is None


@pytest.mark.parametrize("timeout", ["0n", "1n", "99999999n", "1000u", "100m"])
def test_the_server_ends_a_call_at_its_deadline_by_itself(served: Served, timeout: str) -> None:
    """The raw client keeps no time, so this is the server's own doing."""
    with raw(served) as client:
        for name in ("hold", "open"):
            answer = client.answer(client.request(name, framed(b"x"), fields=[("grpc-timeout", timeout)]))
            assert (answer.status, answer.text) == (Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
            assert answer.trailers_only
        assert client.call("quick", b"x").messages == [b"x"]


@pytest.mark.parametrize("name", ["hold", "open"])
def test_a_deadline_takes_the_handler_s_work_back_once(served: Served, name: str) -> None:
    with raw(served) as client:
        stream = client.request(name, framed(b"x"), end=name == "hold", fields=[("grpc-timeout", "1S")])
        held: Held = served.held() if name == "hold" else served.opened()
        assert client.answer(stream).status == Code.DEADLINE_EXCEEDED
        assert held.cancelled()
        if name == "hold":
            held.call.complete(lambda: b"too late")
        else:
            held.call.send(b"too late")
            held.call.end()
        assert client.call("quick", b"x").messages == [b"x"]
        assert client.answers[stream].messages == []
    assert held.notices.empty()


def test_a_deadline_that_is_kept_does_not_fire_later(served: Served) -> None:
    with raw(served) as client:
        stream = client.request("hold", framed(b"x"), fields=[("grpc-timeout", "1S")])
        held = served.held()
        held.call.complete(lambda: b"in time")
        assert client.answer(stream).messages == [b"in time"]
        late = client.request("hold", framed(b"x"), fields=[("grpc-timeout", "1S")])
        assert client.answer(late).status == Code.DEADLINE_EXCEEDED
    assert held.notices.empty()


def test_grpcio_s_client_sees_the_deadline_too(served: Served) -> None:
    with served.channel() as channel:
        assert refused(lambda: unary(channel, "hold", timeout=0.2))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert served.held().cancelled()


# --- cancellation ---


@pytest.mark.parametrize("name", ["hold", "open"])
def test_a_reset_takes_the_handler_s_work_back_once(served: Served, name: str) -> None:
    with raw(served) as client:
        stream, held = begun(served, client, name)
        _, other = begun(served, client, name)
        client.reset(stream)
        assert held.cancelled()
        held.call.on_cancel(lambda: held.notices.put("again, for who comes late"))
        assert held.notices.get(timeout=WAIT) == "again, for who comes late"
        if name == "hold":
            held.call.complete(lambda: b"too late")
        else:
            held.call.send(b"too late")
            held.call.end()
        assert client.call("quick", b"x").messages == [b"x"]
        assert other.notices.empty()
        assert held.notices.empty()


@pytest.mark.parametrize("way", ["fin", "rst"])
def test_a_connection_that_closes_takes_back_all_its_calls(served: Served, way: str) -> None:
    client, other = raw(served), raw(served)
    with client, other:
        gone = [begun(served, client, name)[1] for name in ("hold", "open", "hold", "open")]
        stream, kept = begun(served, other, "hold")
        if way == "rst":
            linger_none = b"\1\0\0\0\0\0\0\0"
            client.socket.setsockopt(1, 13, linger_none)  # SOL_SOCKET, SO_LINGER: close says RST
        client.socket.close()
        assert all(held.cancelled() for held in gone)
        kept.call.complete(lambda: b"still here")
        assert other.answer(stream).messages == [b"still here"]
        assert all(held.notices.empty() for held in (*gone, kept))


def test_grpcio_s_client_cancels(served: Served) -> None:
    with served.channel() as channel:
        future = channel.unary_unary("/test.Service/hold").future(b"x", timeout=WAIT)
        held = served.held()
        future.cancel()
        assert held.cancelled()
        stream = channel.stream_stream("/test.Service/open")(iter([b"a"]), timeout=WAIT)
        opened = served.opened()
        opened.call.send(b"b")
        assert next(stream) == b"b"
        stream.cancel()
        assert opened.cancelled()


def test_a_client_that_takes_back_thousands_keeps_its_connection(served: Served) -> None:
    """As when all its deadlines pass at once; rapid reset is something else, and worse."""
    with served.channel() as channel:
        # as long as all those together may take on a busy machine
        future = channel.unary_unary("/test.Service/hold").future(b"x", timeout=10 * WAIT)
        kept = served.held()
        for _ in range(50):
            calls = [channel.unary_unary("/test.Service/hold").future(b"x", timeout=WAIT) for _ in range(60)]
            taken = [served.held() for _ in calls]
            for call in calls:
                call.cancel()
            assert all(held.cancelled() for held in taken)
        kept.call.complete(lambda: b"kept")
        assert future.result() == b"kept"
    assert kept.notices.empty()


def test_after_its_end_a_call_cannot_be_cancelled(served: Served) -> None:
    with raw(served) as client:
        held: list[Held] = []
        for name in ("hold", "open"):
            stream, found = begun(served, client, name)
            held.append(found)
            if isinstance(found, Opened):
                found.call.end()
            else:
                found.call.complete(lambda: b"done")
            assert client.answer(stream).status == Code.OK
    with raw(served) as client:  # the other connection has been seen to close when its successor is answered
        assert client.call("quick", b"x").messages == [b"x"]
        client.ping()
    assert all(found.notices.empty() for found in held)


def test_a_reset_while_the_answer_is_on_its_way_is_either_answered_or_cancelled_never_both(served: Served) -> None:
    outcomes: list[str] = []
    with raw(served) as client:
        for _ in range(30):
            stream, held = begun(served, client, "hold")
            taken: SimpleQueue[str] = SimpleQueue()

            def answer(taken: SimpleQueue[str] = taken) -> bytes:
                taken.put("answered")
                return b"x"

            ender = threading.Thread(target=held.call.complete, args=(answer,))
            ender.start()
            client.reset(stream)
            ender.join()
            client.ping()
            assert client.call("quick", b"x").messages == [b"x"]
            outcomes.append(f"{taken.qsize()} {held.notices.qsize()}")
    assert set(outcomes) <= {"1 0", "0 1"}
