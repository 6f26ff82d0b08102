"""What handlers give, from wherever they give it: answers, metadata, the end of a stream, and what `release` brings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from server.errors import NotFound
from server.rpc.call import Call, Deferred, Routes, Slow
from server.rpc.status import Code
from tests.server.rpc.raw import framed, raw, value
from tests.server.rpc.transports import WAIT, Held, Served, StandIn, begun, refused, serving, unary

# --- answers ---


@pytest.mark.parametrize("name", ["quick", "slow", "deferred", "thread", "released", "stream"])
@pytest.mark.parametrize("size", [0, 1, 70_000, 2_000_000])
def test_every_kind_of_handler_answers(shared: Served, name: str, size: int) -> None:
    """A stream answers one message with one, so that a unary client cannot tell; 2 MB are decoded beside the loop."""
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with shared.channel() as channel:
        assert unary(channel, name, body) == body


def test_an_answer_may_be_made_of_parts(shared: Served) -> None:
    with shared.channel() as channel:
        for body in (b"", b"a", b"ab", b"abc", bytes(100_000)):
            assert unary(channel, "parts", body) == body


@pytest.mark.parametrize(
    "parts", [[bytes(100_000), memoryview(bytes(200_000))], [memoryview(bytes(8)).cast("d")] * 5, []]
)
def test_parts_large_and_small_arrive_in_order(served: Served, parts: list[Any]) -> None:
    with raw(served) as client:
        stream, held = begun(served, client, "hold")
        held.call.complete(lambda: parts)
        assert client.answer(stream).messages == [b"".join(parts)]


def test_calls_from_many_threads_are_all_answered_with_their_own(served: Served) -> None:
    with served.channel() as channel:
        futures = {
            i: channel.unary_unary("/test.Service/thread").future(b"%d" % i, timeout=WAIT, wait_for_ready=True)
            for i in range(300)
        }
        assert {i: future.result() for i, future in futures.items()} == {i: b"%d" % i for i in range(300)}


def test_held_calls_are_answered_in_any_order(served: Served) -> None:
    with raw(served) as client:
        streams = [client.request("hold", framed(b"%d" % i)) for i in range(50)]
        calls = [served.held() for _ in streams]
        threads = [
            threading.Thread(target=held.call.complete, args=(lambda body=held.body: body,)) for held in reversed(calls)
        ]
        for thread in threads:
            thread.start()
        assert [client.answer(stream).messages for stream in streams] == [[b"%d" % i] for i in range(50)]
        for thread in threads:
            thread.join()


def test_streams_send_from_any_thread_in_order(served: Served) -> None:
    with served.channel() as channel:
        answers = channel.stream_stream("/test.Service/open")(iter(()), timeout=WAIT)
        opened = served.opened()

        def send() -> None:
            for i in range(500):
                opened.call.send(b"%d" % i)
            opened.call.end()

        sender = threading.Thread(target=send)
        sender.start()
        assert list(answers) == [b"%d" % i for i in range(500)]
        sender.join()


def test_a_stream_s_status_comes_behind_what_it_sent(served: Served) -> None:
    with raw(served) as client:
        stream, opened = begun(served, client, "open")
        opened.call.send(b"a")
        opened.call.send([b"b", b"c"])
        opened.call.set_trailers((("k", "v"),))
        opened.call.end(NotFound("no more"))
        answer = client.answer(stream)
    assert (answer.messages, answer.status, answer.text) == ([b"a", b"bc"], Code.NOT_FOUND, "no more")
    assert value(answer.trailers, "k") == "v"


def test_half_close_reaches_the_handler_after_the_last_message(served: Served) -> None:
    with raw(served) as client:
        stream = client.request("open", framed(b"a") + framed(b"b"), end=False)
        opened = served.opened()
        assert [opened.next(), opened.next()] == [b"a", b"b"]
        client.send(stream, framed(b"c"))
        assert opened.next() == b"c"
        client.end(stream)
        assert opened.next() is None
        opened.call.send(b"after the half-close")
        opened.call.end()
        assert client.answer(stream).messages == [b"after the half-close"]
        assert opened.messages.empty()
        assert opened.notices.empty()


def test_a_stream_may_end_before_the_client_half_closes(served: Served) -> None:
    with raw(served) as client:
        stream, opened = begun(served, client, "open")
        opened.call.send(b"enough")
        opened.call.end()
        answer = client.answer(stream)
        assert (answer.messages, answer.status) == ([b"enough"], Code.OK)
        assert client.call("quick", b"x").messages == [b"x"]


# --- metadata ---

SENT = (("x-text", "a, b"), ("x-text", "again"), ("x-empty", ""), ("x-bytes-bin", b"\x00\xff,"), ("x-bytes-bin", b""))


def test_metadata_goes_there_and_back(served: Served) -> None:
    with served.channel() as channel:
        future = channel.unary_unary("/test.Service/hold").future(b"x", metadata=SENT, timeout=WAIT)
        held = served.held()
        got = tuple(held.call.metadata)
        assert [pair for pair in got if pair[0].startswith("x-")] == list(SENT)
        assert not {key for key, _ in got} & {
            ":path",
            "te",
            "content-type",
            "grpc-timeout",
            "grpc-encoding",
            "user-agent",
        }
        held.call.send_metadata(got)
        held.call.set_trailers(tuple(reversed(SENT)))
        held.call.complete(lambda: b"y")
        assert future.result(WAIT) == b"y"
        assert [pair for pair in future.initial_metadata() if pair[0].startswith("x-")] == list(SENT)
        assert [pair for pair in future.trailing_metadata() if pair[0].startswith("x-")] == list(reversed(SENT))


def test_initial_metadata_comes_before_the_status_of_a_failed_call(served: Served) -> None:
    def missing() -> bytes:
        raise NotFound("gone")

    with served.channel() as channel:
        future = channel.unary_unary("/test.Service/hold").future(b"x", timeout=WAIT)
        held = served.held()
        held.call.send_metadata((("x-first", "1"),))
        held.call.set_trailers((("x-last", "2"),))
        held.call.complete(missing)
        assert future.exception(WAIT).code() is grpc.StatusCode.NOT_FOUND
        assert ("x-first", "1") in tuple(future.initial_metadata())
        assert ("x-last", "2") in tuple(future.trailing_metadata())


@pytest.mark.parametrize("size", [21_000, 40_000])
def test_metadata_beyond_the_limit_costs_its_own_call_alone(served: Served, size: int) -> None:
    with served.channel() as channel:
        future = channel.unary_unary("/test.Service/hold").future(b"x", timeout=WAIT)
        held = served.held()
        assert unary(channel, "quick", b"x", metadata=(("x-large", "a" * 8000),)) == b"x"
        code, text = refused(lambda: unary(channel, "quick", b"x", metadata=(("x-large", "a" * size),)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text.startswith("received metadata size exceeds ")
        held.call.complete(lambda: b"y")
        assert future.result() == b"y"


# --- release ---


def test_release_follows_every_round_of_reading(served: Served) -> None:
    """Answers are given within `release` alone, one call at a time, so each needs a release of its own."""
    with raw(served) as client:
        for i in range(20):
            assert client.call("released", b"%d" % i).messages == [b"%d" % i]
    assert served.service.rounds == [1] * 20


def test_what_arrives_together_is_released_together(own: Served) -> None:
    with raw(own) as client:
        client.ping()
        streams = [client.submit("released", framed(b"%d" % i)) for i in range(8)]
        client.flush()
        assert [client.answer(stream).messages for stream in streams] == [[b"%d" % i] for i in range(8)]
    assert own.service.rounds == [8]


def test_a_large_body_that_is_decoded_beside_the_loop_is_released_too(served: Served) -> None:
    with served.channel() as channel:
        assert len(unary(channel, "released", bytes(3 << 20))) == 3 << 20


class Faulty(StandIn):
    """Raises where nothing should."""

    def release(self) -> None:
        super().release()
        if self.calls == 1:
            self.calls += 1
            raise ValueError("a defect of release")

    def _hold(self, body: Any, call: Call) -> None:
        held = Held(bytes(body), call)
        call.on_cancel(self._refuse_to_go)
        self.held.put(held)

    def _refuse_to_go(self) -> None:
        raise ValueError("a defect of on_cancel")


@pytest.fixture
def faulty(kind: str) -> Iterator[Served]:
    with serving(kind, Faulty()) as found:
        yield found


def test_a_defect_outside_of_a_handler_does_not_end_the_server(faulty: Served) -> None:
    with raw(faulty) as client:
        assert client.call("deferred", b"x").messages == [b"x"]
        stream, held = begun(faulty, client, "hold")
        client.reset(stream)
        assert held.cancelled()
        assert client.call("quick", b"x").messages == [b"x"]


def test_a_handler_that_waits_does_not_hold_the_others(served: Served) -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait(body: Any) -> bytes:
        entered.set()
        assert gate.wait(WAIT)
        return bytes(body)

    routes: Routes = {"/slow": Slow(wait), "/quick": Deferred(lambda body, call: call.complete(lambda: bytes(body)))}
    with serving(served.kind, StandIn(routes)) as other, raw(other) as client:
        slow = client.request("/slow", framed(b"slow"))
        assert entered.wait(WAIT)
        assert client.call("/quick", b"x").messages == [b"x"]
        gate.set()
        assert client.answer(slow).messages == [b"slow"]
