"""Ten thousand malformed requests leave a real server answering rightly, in the same memory, with a quiet log."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2

from tests.children import started_server
from tests.e2e import models
from tests.e2e.hostile import PREFIX, Case, cases, good

pytestmark = pytest.mark.slow

COUNT = 10_000
IN_FLIGHT = 64
GROWTH_LIMIT = 32 << 20
"""Bytes of resident memory from the end of the warm-up; a leak of 4 KiB per request would be 40 MiB."""

LEAK = re.compile(r"Traceback|\.py\b|site-packages|/(work|home|usr|tmp|root)|0x[0-9a-f]{6,}|\bline \d+, in |object at ")
"""What no client may read: traces, paths of this host, addresses."""


class Attack:
    """Sends cases, many in flight, and keeps what is wrong with the answers."""

    def __init__(self, url: str) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.right = 0
        self._channel = grpc.aio.insecure_channel(url)
        self._calls = {
            path: self._channel.unary_unary(path)
            for path in {case.path for case in cases(2000, 0)} | {PREFIX + "ModelInfer"}
        }

    async def send(self, case: Case) -> None:
        try:
            await self._calls[case.path](case.body, timeout=30)
            code, text = grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details() or ""
        self.seen[case.kind, code.name] += 1
        echoed = text
        for given in re.findall(rb"[\x20-\x7e]{4,}", case.body):  # a name that the client sent may be said back
            echoed = echoed.replace(given.decode(), "")
        if code not in case.allowed or LEAK.search(echoed) or not text.isprintable() or len(text) > 5000:
            self.wrong.append(f"{case.kind}: {code.name} {text[:300]!r}")

    async def check(self, number: int) -> None:
        """A right request among the wrong ones: its own answer, whatever goes on around it."""
        rows = 1 + number % 4
        body = await self._calls[PREFIX + "ModelInfer"](good(number, rows).SerializeToString(), timeout=30)
        answer = service_pb2.ModelInferResponse.FromString(body)
        values = np.frombuffer(answer.raw_output_contents[0], np.float32)
        if values.tolist() != [2.0 * number] * (4 * rows):
            self.wrong.append(f"wrong answer to {number}: {values}")
        self.right += 1

    async def run(self, count: int, seed: int) -> None:
        source = enumerate(cases(count, seed))

        async def worker() -> None:
            for number, case in source:
                await self.send(case)
                if number % 20 == 0:
                    await self.check(number)

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

    async def close(self) -> None:
        await self._channel.close()


def test_ten_thousand_malformed_requests_leave_the_server_as_it_was(tmp_path: Path) -> None:
    models.write(tmp_path, "add", models.ADD)
    models.write(tmp_path, "text", models.TEXT)
    flags = ("--model-control-mode", "explicit", "--load-model", "*", "--log-verbose", "1")
    with started_server(tmp_path, *flags) as child:
        process = psutil.Process(child.process.pid)

        async def main() -> tuple[Attack, int]:
            attack = Attack(child.url)
            await attack.run(COUNT // 5, seed=1)  # warm: arenas and pools have their size
            start = process.memory_info().rss
            await attack.run(COUNT, seed=2)
            await attack.close()
            return attack, process.memory_info().rss - start

        attack, grown = asyncio.run(main())
        threads = process.num_threads()
    print(*sorted(attack.seen.items()), f"grown {grown >> 10} KiB, threads {threads}", sep="\n")
    assert attack.wrong[:20] == []
    assert attack.right == (COUNT + COUNT // 5) // 20
    assert grown < GROWTH_LIMIT
    assert child.process.returncode == 0
    log = [line for line in child.lines if "Traceback" in line or re.match(r"E\d{4} ", line) or "defect" in line]
    assert log == []
    assert all(line.isprintable() for line in child.lines)


def test_bytes_that_are_no_http2_harm_nobody(tmp_path: Path) -> None:
    models.write(tmp_path, "add", models.ADD)
    r = random.Random(3)
    with started_server(tmp_path) as child:
        host, port = child.url.split(":")
        process = psutil.Process(child.process.pid)
        for number in range(200):
            with socket.create_connection((host, int(port)), timeout=10) as raw, contextlib.suppress(OSError):
                raw.sendall([
                    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + r.randbytes(200),
                    r.randbytes(500),
                    b"",
                ][number % 4])  # fmt: skip

        async def ask() -> list[str]:
            attack = Attack(child.url)
            await asyncio.gather(*(attack.check(number) for number in range(20)))
            await attack.close()
            return attack.wrong

        assert asyncio.run(ask()) == []
        assert process.num_fds() < 100
    assert child.process.returncode == 0
    assert not [line for line in child.lines if "Traceback" in line]
