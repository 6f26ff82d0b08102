"""Taking requests apart without protobuf: the parts are the message that protobuf reads, or it is left to it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rpc import infer_wire
from server.rpc.infer_wire import HEAD_LIMIT, RAW_LIMIT, split
from tests.server.rpc.infer_cases import Request, accepted, bodies, parameter, parsed, piece, tensor, varint


def check(body: bytes | memoryview) -> bool:
    """Whether it was taken apart; if so, protobuf must agree."""
    found = split(body)
    if found is None:
        return False
    head, request_id, raws = found
    whole, rest = parsed(body), parsed(head)
    assert (whole is None) == (rest is None), "the head decides whether it is a message"
    if whole is not None:
        assert not rest.id
        assert not rest.raw_input_contents
        rest.id = request_id
        rest.raw_input_contents.extend(bytes(body[at : at + length]) for at, length in raws)
        assert rest == whole
    return True


@settings(max_examples=1000)
@given(bodies())
def test_the_parts_of_any_body_are_the_whole(body: bytes) -> None:
    assert check(body) == check(memoryview(b"0123456" + body)[7:])


@given(st.binary(max_size=60))
def test_noise_is_no_exception(body: bytes) -> None:
    check(body)


@given(accepted())
def test_what_clients_write_is_always_taken_apart(pieces: list[bytes]) -> None:
    assert check(b"".join(pieces))
    message = Request.FromString(b"".join(pieces))
    assert check(message.SerializeToString()), "as protobuf's own writer does it"


def test_a_head_in_pieces_is_the_same_head() -> None:
    name, shape, raw = piece(1, b"m"), tensor("x", "FP32", [4]), piece(7, bytes(16))
    together, apart = split(piece(3, b"a") + name + shape + raw), split(name + raw + piece(3, b"b") + shape)
    assert together is not None
    assert apart is not None
    assert together[0] == apart[0] == name + shape


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 21, (1 << 21) - 1, 1 << 24])
def test_tensors_of_every_length_of_length(size: int) -> None:
    body = piece(1, b"m") + piece(7, bytes(size)) + piece(7, b"\1" * 3)
    found = split(body)
    assert found is not None
    assert [length for _, length in found[2]] == [size, 3]
    assert check(body)


def test_the_shortest_form_of_a_length_is_the_one_that_is_read() -> None:
    for extra in range(1, 10):
        assert split(piece(1, b"m" * 200, extra)) is None
        assert split(piece(7, b"", extra)) is None


def test_a_body_cut_off_anywhere_is_left_to_protobuf() -> None:
    body = piece(1, b"m") + piece(3, b"id") + tensor("x", "FP32", [1, 200]) + piece(7, bytes(800))
    ends = {
        len(piece(1, b"m")),
        len(piece(1, b"m") + piece(3, b"id")),
        len(body) - len(piece(7, bytes(800))),
        len(body),
    }
    for end in range(len(body) + 1):
        assert (split(body[:end]) is not None) == (end in ends | {0})


@pytest.mark.parametrize("text", ["", "a", "é\U0001f600", "\0", "x" * 100_000])
def test_ids_of_all_kinds(text: str) -> None:
    found = split(piece(1, b"m") + piece(3, text.encode()))
    assert found is not None
    assert found[1] == text


@pytest.mark.parametrize("text", [b"\xff", b"\xc3\x28", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_an_id_that_is_no_text_is_refused_by_protobuf(text: bytes) -> None:
    body = piece(1, b"m") + piece(3, text)
    assert split(body) is None
    assert parsed(body) is None


def test_one_id_and_no_more() -> None:
    assert split(piece(3, b"a") + piece(3, b"b")) is None
    assert split(piece(3, b"") + piece(3, b"b")) is None


def test_heads_have_a_limit() -> None:
    fixed = len(piece(1, b"m")) + len(piece(4, bytes(200))) - 200
    fits = piece(1, b"m") + piece(4, bytes(HEAD_LIMIT - fixed))
    assert len(fits) == HEAD_LIMIT
    assert split(fits + piece(7, bytes(9999))) is not None
    assert split(piece(1, b"mm") + fits[3:]) is None
    assert split(fits + piece(7, b"") + piece(1, b"m")) is None, "also in pieces"


def test_a_body_of_countless_fields_is_left_to_protobuf() -> None:
    assert split(piece(7, b"") * RAW_LIMIT) is not None
    assert split(piece(7, b"") * (RAW_LIMIT + 1)) is None
    assert split(piece(4, b"") * (HEAD_LIMIT // 2 + 1)) is None


def test_parameters_belong_to_the_head() -> None:
    found = split(parameter("k", int64_param=1) + piece(7, b""))
    assert found is not None
    assert found[0] == parameter("k", int64_param=1)


@given(st.integers(1, 15), st.integers(0, infer_wire.MAX_BYTES))
def test_prefixes_are_protobuf_s(number: int, length: int) -> None:
    assert infer_wire.prefix(number, length) == bytes([number << 3 | 2]) + varint(length)


@settings(max_examples=1000)
@given(accepted(), st.data())
def test_a_body_that_fits_a_layout_is_split_alike(pieces: list[bytes], data: st.DataObject) -> None:
    body = b"".join(pieces)
    parts = split(body)
    assert parts is not None
    layout = infer_wire.layout(body, parts)
    assert layout.request_id(body) == parts[1]
    other = bytearray(body)
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
        other[at] = data.draw(st.integers(0, 255))
    for form in (bytes(other), memoryview(b"0123456" + other)[7:]):
        request_id = layout.request_id(form)
        if request_id is not None:
            assert split(form) == (parts[0], request_id, layout.raws)
        elif split(form) is not None:
            assert bytes(other) != body


def test_a_layout_lets_ids_and_tensors_differ_and_nothing_else() -> None:
    def body(name: bytes, text: bytes, raw: bytes) -> bytes:
        return piece(1, name) + piece(3, text) + tensor("x", "FP32", [4]) + piece(7, raw)

    first = body(b"m", b"one", bytes(16))
    parts = split(first)
    assert parts is not None
    layout = infer_wire.layout(first, parts)
    assert layout.request_id(body(b"m", b"two", b"0123456789abcdef")) == "two"
    assert layout.request_id(body(b"n", b"two", bytes(16))) is None
    assert layout.request_id(body(b"m", b"\xff\xfe\xfd", bytes(16))) is None, "an id that is no text"
