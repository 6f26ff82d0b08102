"""gRPC's TestService as routes of `rpc/call.py`: what the interop cases ask of a server."""

from __future__ import annotations

import pytest

from server.errors import ServerError
from server.rpc import status
from server.rpc.call import BaseCall, Buffer, Call, Deferred, OnMessage, Quick, Routes, Stream, StreamCall
from tests.server.rpc.interop import messages as m

SERVICE = "/grpc.testing.TestService/"
ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"


class Unknown(ServerError):
    """Status 2, which no error of the server has and the interop cases ask for."""


def with_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `status` know of status 2, by name and by number, for one test."""
    monkeypatch.setitem(status.CODES, Unknown, 2)


def routes() -> Routes:
    return {
        SERVICE + "EmptyCall": Quick(lambda body: m.Empty.FromString(bytes(body)).SerializeToString()),
        SERVICE + "UnaryCall": Deferred(_unary),
        SERVICE + "StreamingInputCall": Stream(_input),
        SERVICE + "StreamingOutputCall": Stream(_full_duplex),
        SERVICE + "FullDuplexCall": Stream(_full_duplex),
    }


def _echo_metadata(call: BaseCall) -> None:
    sent = dict(call.metadata)
    if ECHO_INITIAL in sent:
        call.send_metadata(((ECHO_INITIAL, sent[ECHO_INITIAL]),))
    if ECHO_TRAILING in sent:
        call.set_trailers(((ECHO_TRAILING, sent[ECHO_TRAILING]),))


def _asked(wanted: m.EchoStatus) -> ServerError:
    cls: type[ServerError] = next(cls for cls, code in status.CODES.items() if code == wanted.code)
    return cls(wanted.message)


def _unary(body: Buffer, call: Call) -> None:
    request = m.SimpleRequest.FromString(bytes(body))
    _echo_metadata(call)

    def answer() -> bytes:
        if request.HasField("response_status"):
            raise _asked(request.response_status)
        return bytes(m.SimpleResponse(payload=m.Payload(body=bytes(request.response_size))).SerializeToString())

    call.complete(answer)


def _input(call: StreamCall) -> OnMessage:
    _echo_metadata(call)
    size = 0

    def on_message(body: Buffer | None) -> None:
        nonlocal size
        if body is None:
            call.send(m.StreamingInputCallResponse(aggregated_payload_size=size).SerializeToString())
            call.end()
        else:
            size += len(m.StreamingInputCallRequest.FromString(bytes(body)).payload.body)

    return on_message


def _full_duplex(call: StreamCall) -> OnMessage:
    """StreamingOutputCall too, which sends one request and otherwise asks for the same."""
    _echo_metadata(call)
    ended = False

    def on_message(body: Buffer | None) -> None:
        nonlocal ended
        if ended:
            return
        if body is None:
            call.end()
            return
        request = m.StreamingOutputCallRequest.FromString(bytes(body))
        if request.HasField("response_status"):
            ended = True
            call.end(_asked(request.response_status))
            return
        for wanted in request.response_parameters:
            payload = m.Payload(body=bytes(wanted.size))
            call.send(m.StreamingOutputCallResponse(payload=payload).SerializeToString())

    return on_message
