"""Stacks as perf and py-spy print them, and the stages that they belong to."""

from __future__ import annotations

import pytest

from tests.bench import stages
from tests.bench.stages import DECODE, ENCODE, OTHER, POOL, QUEUE, RUN, SOCKET, STAGES, TRANSPORT, VALIDATE

ROOT = "thread (7): rpc;Thread.run (threading.py:982)"


@pytest.mark.parametrize(
    ("inner", "stage"),
    [
        ("Service._infer (server/rpc/service.py:200);decode (server/rpc/codec.py:63)", DECODE),
        ("Call.resolve (server/rpc/grpcio.py:94);encode (server/rpc/codec.py:324)", ENCODE),
        ("Model.submit (server/model.py:90);Validator.check (server/validate.py:133)", VALIDATE),
        ("Scheduler.push (server/batching/scheduler.py:77);Condition.notify (threading.py:382)", QUEUE),
        ("_Infer.put (server/rpc/x.py:1);BaseEventLoop.call_soon_threadsafe (asyncio/base_events.py:812)", QUEUE),
        ("BaseEventLoop._run_once (asyncio/base_events.py:1922);Handle._run (asyncio/events.py:80)", TRANSPORT),
        ("Runner._attempt (server/batching/runner.py:114);Collator.answer (server/batching/collate.py:104)", ENCODE),
        # the innermost frame that says anything decides, whatever the interpreter does below it
        (
            "decode (server/rpc/codec.py:63);_frombuffer (numpy/_core/numeric.py:9);PyDict_New (libpython3.11.so)",
            DECODE,
        ),
        ("Session.run (onnxruntime/capi/onnxruntime_inference_collection.py:395)", RUN),
        ("main (somewhere/else.py:1)", OTHER),
    ],
)
def test_a_python_stack_belongs_to_the_stage_of_its_innermost_known_frame(inner: str, stage: str) -> None:
    assert stages.of_python(f"{ROOT};{inner}") == stage


@pytest.mark.parametrize(
    "inner",
    [
        "Handle._run (asyncio/events.py:80);0x7f (grpc/_cython/cygrpc.cpython-311.so);0x7f (libc.so.6)",
        "Transport._read (server/rpc/http2/transport.py:190);sock_recv (socketmodule.c:3567)",
        "Connection.feed (server/rpc/http2/connection.py:9);0x1 (ngh2/_core.cpython-311-x86_64-linux-gnu.so)",
    ],
)
def test_what_perf_counts_by_itself_is_not_shared_out_again(inner: str) -> None:
    assert stages.of_python(f"{ROOT};{inner}") is None


KERNEL = "[kernel.kallsyms]"
PYTHON = "/usr/lib/libpython3.11.so.1.0"
ORT = "/venv/onnxruntime/capi/onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so"


@pytest.mark.parametrize(
    ("frames", "stage"),
    [
        ([("eth_type_trans", KERNEL), ("tcp_sendmsg", KERNEL), ("__libc_sendmsg", "libc.so.6")], SOCKET),
        ([("futex_wake", KERNEL), ("__x64_sys_futex", KERNEL)], QUEUE),
        ([("finish_task_switch", KERNEL), ("schedule", KERNEL), ("ep_poll", KERNEL)], SOCKET),
        ([("finish_task_switch", KERNEL), ("schedule", KERNEL), ("exit_to_user_mode_loop", KERNEL)], QUEUE),
        ([("unix_stream_sendmsg", KERNEL), ("sock_sendmsg", KERNEL)], QUEUE),
        ([("clear_page_erms", KERNEL), ("asm_exc_page_fault", KERNEL)], OTHER),
        ([("[unknown]", ORT), ("[unknown]", "[unknown]")], RUN),
        ([("_PyEval_EvalFrameDefault", PYTHON)], stages.INTERPRETER),
    ],
)
def test_a_sample_of_perf_belongs_to_a_system_call_a_library_or_the_interpreter(
    frames: list[tuple[str, str]], stage: str
) -> None:
    assert stages.of_perf(frames) == stage


def sample(thread: int, *frames: tuple[str, str]) -> str:
    lines = "\n".join(f"\t    7f47e23af8c0 {function} ({library})" for function, library in frames)
    return f" {thread} \n{lines}\n\n"


def test_shares_add_up_and_the_interpreters_part_is_shared_out_as_py_spy_says() -> None:
    script = (
        3 * sample(1, ("_PyEval_EvalFrameDefault", PYTHON))
        + sample(1, ("tcp_sendmsg", KERNEL))
        + sample(1, ("[unknown]", ORT))
        + 3 * sample(2, ("[unknown]", ORT))
        + 2 * sample(2, ("futex_wait", KERNEL))
    )
    spied = {
        f"{ROOT};decode (server/rpc/codec.py:63)": 2,
        f"{ROOT};encode (server/rpc/codec.py:324)": 1,
        f"{ROOT};Handle._run (asyncio/events.py:80);0x1 (grpc/_cython/cygrpc.so)": 50,
    }
    found = stages.shares(script, spied, frozenset({1}))
    assert set(found) == set(STAGES)
    assert sum(found.values()) == pytest.approx(1)
    assert found[DECODE] == pytest.approx(0.2)
    assert found[ENCODE] == pytest.approx(0.1)
    assert found[SOCKET] == pytest.approx(0.1)
    assert found[RUN] == pytest.approx(0.1)
    assert found[POOL] == pytest.approx(0.5)  # a thread that runs onnxruntime and no Python: waiting is part of it


def test_no_sample_is_a_mistake_that_is_told() -> None:
    with pytest.raises(ValueError, match="perf has no sample"):
        stages.shares("", {}, frozenset())
