"""Clients that take their time, or are gone without a word. Limits of a fifth of a second; nobody sleeps for them.

Ours alone: of these limits grpcio has only keepalive, and not for times as short as these.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ngh2
import pytest

from server.rpc.limits import MIB
from server.rpc.status import Code
from server.rpc.tls import Tls
from tests.server.rpc import certificates
from tests.server.rpc.certificates import OPENSSL
from tests.server.rpc.hostile.conftest import LIMITS, unharmed
from tests.server.rpc.hostile.frames import (
    BEGIN,
    DATA,
    END_HEADERS,
    HEADERS,
    PREFACE,
    SETTINGS,
    Peer,
    call,
    frame,
    head,
)
from tests.server.rpc.raw import framed, prefix, raw
from tests.server.rpc.transports import Served, StandIn, begun, serving

WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
SOON = 0.2
HURRY = replace(LIMITS, handshake_secs=SOON, receive_secs=SOON, send_secs=SOON)


@pytest.fixture
def hurried() -> Iterator[Served]:
    with serving("http2", StandIn(), HURRY) as served, unharmed(served):
        yield served


@pytest.fixture
def alive() -> Iterator[Served]:
    limits = replace(LIMITS, keepalive_secs=SOON, keepalive_timeout_secs=SOON)
    with serving("http2", StandIn(), limits) as served, unharmed(served):
        yield served


BEGINNINGS = (b"", PREFACE[:1], PREFACE[:-1], PREFACE, PREFACE + frame(SETTINGS)[:5], PREFACE + frame(SETTINGS)[:8])


def test_who_does_not_begin_is_sent_away_and_who_idles_is_not(hurried: Served) -> None:
    with raw(hurried) as patient:
        patient.ping()
        peers = [Peer(hurried, begin) for begin in BEGINNINGS * 5]
        for peer in peers:
            with peer:
                peer.until_closed()
        assert patient.call("quick", b"still here").messages == [b"still here"]


def test_a_beginning_byte_by_byte_does_not_help(hurried: Served) -> None:
    with Peer(hurried, b"") as peer:
        for byte in BEGIN[:-1]:
            if not peer.send(bytes([byte])):
                return
            threading.Event().wait(0.1)
    raise AssertionError("40 bytes may not take four seconds")


@pytest.mark.skipif(OPENSSL is None, reason="needs the openssl program")
def test_a_handshake_of_tls_that_does_not_end_is_ended(tmp_path: Path) -> None:
    made = certificates.make(tmp_path)
    tls = Tls(made.server.certificate, made.server.key)
    with serving("http2", StandIn(), HURRY, tls=tls) as served:
        beginnings = (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        for peer in [Peer(served, begin) for begin in beginnings]:
            with peer:
                peer.until_closed()


def test_a_message_that_does_not_come_ends_its_call_alone(hurried: Served) -> None:
    with raw(hurried) as client:
        other, held = begun(hurried, client, "hold")
        bodies = (b"", prefix(10), prefix(10) + b"abc")
        for stream in [client.request(name, body, end=False) for name in ("quick", "hold") for body in bodies]:
            assert client.answer(stream).status == Code.DEADLINE_EXCEEDED
        held.call.complete(lambda: b"an answer may take longer than a question")
        assert client.answer(other).messages == [b"an answer may take longer than a question"]
    assert hurried.service.held.empty()


def test_a_message_byte_by_byte_does_not_help(hurried: Served) -> None:
    with Peer(hurried) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, head("quick")) + frame(DATA, 0, 1, prefix(1000)))
        pause = threading.Event()
        receiver = threading.Thread(target=lambda: (peer.until(HEADERS, 1), pause.set()))
        receiver.start()
        for _ in range(1000):
            peer.send(frame(DATA, 0, 1, b"x"))
            if pause.wait(0.02):
                break
        receiver.join()
        assert pause.is_set()
        assert not [seen for seen in peer.seen if seen.kind == DATA]


def test_a_stream_may_idle_but_not_within_a_message(hurried: Served) -> None:
    with raw(hurried) as client:
        idle = client.request("stream", end=False)
        stream = client.request("stream", framed(b"whole") + prefix(10) + b"abc", end=False)
        answer = client.answer(stream)
        assert (answer.messages, answer.status) == ([b"whole"], Code.DEADLINE_EXCEEDED)
        client.send(idle, framed(b"x"), end=True)
        assert client.answer(idle).messages == [b"x"]


def test_who_takes_nothing_of_an_answer_is_cut_off(hurried: Served) -> None:
    windows = [PREFACE + frame(SETTINGS, payload=b"\0\4" + window.to_bytes(4)) for window in (0, 1, 65535)]
    for peer in [Peer(hurried, begin + call(1, "large", b"%d" % MIB)) for begin in windows]:
        with peer:
            peer.until_closed()


def test_who_does_not_read_its_socket_is_cut_off(hurried: Served) -> None:
    """With windows so large that HTTP/2 does not hold the answer back."""
    begin = PREFACE + frame(SETTINGS, payload=b"\0\4\x7f\xff\xff\xff") + frame(8, payload=(1 << 30).to_bytes(4))
    with Peer(hurried, begin) as peer:
        for stream in range(1, 9, 2):
            peer.send(call(stream, "large", b"%d" % (8 * MIB)))
        nothing = threading.Event()  # tells when the server has closed, except reading, which this client does not do
        for _ in range(1000):
            if not peer.send(frame(6, payload=bytes(8))):
                return
            nothing.wait(0.02)
    raise AssertionError("it was not cut off")


def test_who_does_not_answer_a_ping_is_taken_for_dead(alive: Served) -> None:
    with Peer(alive) as dead, raw(alive) as living:
        _, held = begun(alive, living, "hold")
        dead.send(call(1, "hold"))
        gone = threading.Event()
        watcher = threading.Thread(target=lambda: (dead.until_closed(), gone.set()))
        watcher.start()
        living.pump(gone.is_set)
        watcher.join()
        assert alive.held().cancelled()
        assert living.call("quick", b"x").messages == [b"x"]
        assert held.notices.empty()
