"""The whole tool against a real gRPC server of the protocol, whose answers the test holds in its hand."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.children import ROOT
from tests.load import options, result, run, show
from tests.load.errors import LoadError
from tests.load.result import CONCURRENCY, Run
from tests.load.virtual import Servicer, serving

SHAPES = ("--shape", "input_ids:8", "--shape", "attention_mask:8")


@pytest.fixture(params=[options.HTTP2, options.GRPCIO])
def client(request: pytest.FixtureRequest) -> str:
    """Both clients have to find the same."""
    return str(request.param)


async def measure(client: str, url: str, *flags: str, stop: asyncio.Event | None = None) -> Run:
    parsed = options.parse(["-m", "m", "-u", url, "--client", client, *SHAPES, *flags])
    return await run.measure(parsed, show.Plain(CONCURRENCY, lambda text: None), stop or asyncio.Event())


async def tool(*flags: str) -> tuple[int, str, str]:
    """The tool as a child: exit status and what it printed."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.load", *flags, stdout=pipe, stderr=pipe, cwd=ROOT
    )
    out, err = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


def test_exactly_so_many_requests_are_in_flight(client: str) -> None:
    class Gate(Servicer):
        """Lets nobody through before the seventh has come; with six in flight it would hang."""

        async def answer(self, number: int, context: Any) -> None:
            async with self.arrived:
                await self.arrived.wait_for(lambda: len(self.requests) >= 7)

    async def main() -> None:
        servicer = Gate()
        async with serving(servicer) as url:
            flags = ("--concurrency-range", "7", "--request-count", "21", "--warmup-request-count", "0")
            found = (await measure(client, url, *flags)).levels[0]
        assert servicer.most_in_flight == 7
        assert len(servicer.requests) == found.requests == found.succeeded == 21
        assert (found.concurrency, found.errors) == (7, {})

    asyncio.run(main())


def test_an_open_loop_sends_all_before_any_answer(client: str) -> None:
    class Gate(Servicer):
        async def answer(self, number: int, context: Any) -> None:
            async with self.arrived:
                await self.arrived.wait_for(lambda: len(self.requests) == 20)

    async def main() -> None:
        servicer = Gate()
        async with serving(servicer) as url:
            flags = ("--request-rate-range", "200", "--request-count", "20", "--warmup-request-count", "0")
            found = (await measure(client, url, *flags)).levels[0]
        assert servicer.most_in_flight == 20
        assert (found.requests, found.succeeded, found.request_rate) == (20, 20, 200)
        assert found.latency is not None
        assert found.lag is not None
        # The first waited for the last, sent 19 gaps of 5 ms later: the schedule, not the machine, sets this floor.
        assert found.latency.max >= 94

    asyncio.run(main())


def test_errors_are_counted_by_text_beside_the_answers(client: str) -> None:
    class Failing(Servicer):
        async def answer(self, number: int, context: Any) -> None:
            if number % 4 == 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum\n queue size")

    async def main() -> None:
        async with serving(Failing()) as url:
            found = (await measure(client, url, "--request-count", "20", "--warmup-request-count", "0")).levels[0]
        assert found.errors == {"UNAVAILABLE: Exceeds maximum queue size": 5}
        assert (found.requests, found.succeeded) == (20, 15)

    asyncio.run(main())


def test_a_request_that_is_never_answered_is_an_error_after_the_timeout(client: str) -> None:
    class Deaf(Servicer):
        async def answer(self, number: int, context: Any) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        async with serving(Deaf()) as url:
            flags = ("--request-count", "2", "--warmup-request-count", "0", "--client-timeout", "0.05")
            found = (await measure(client, url, *flags)).levels[0]
        assert found.errors == {"DEADLINE_EXCEEDED: Deadline Exceeded": 2}
        assert found.latency is None

    asyncio.run(main())


def test_the_requests_are_what_was_asked_for(client: str) -> None:
    async def main() -> None:
        servicer = Servicer()
        async with serving(servicer) as url:
            flags = ("-b", "4", "-x", "3", "--request-count", "6", "--warmup-request-count", "2")
            target = (await measure(client, url, *flags)).targets[0]
        assert len(servicer.requests) == 2 + 6
        request = servicer.requests[0]
        assert (request.model_name, request.model_version, request.id) == ("m", "3", "")
        assert [(item.name, item.datatype, list(item.shape)) for item in request.inputs] == [
            ("input_ids", "INT64", [4, 8]),
            ("attention_mask", "INT64", [4, 8]),
        ]
        assert [len(raw) for raw in request.raw_input_contents] == [4 * 8 * 8] * 2
        assert len({request.raw_input_contents[0] for request in servicer.requests}) == 6
        assert (target.server, target.platform) == ("held 1", "held_in_hand")
        assert target.inputs["input_ids"] == "INT64 [4, 8]"
        assert target.levels[0].inferences == pytest.approx(4 * target.levels[0].throughput)

    asyncio.run(main())


def test_connections_are_connections(client: str) -> None:
    async def main() -> None:
        servicer = Servicer()
        async with serving(servicer) as url:
            await measure(client, url, "--connections", "3", "--concurrency-range", "3", "--request-count", "12")
        assert len(servicer.peers) == 3

    asyncio.run(main())


@pytest.mark.parametrize(("limit", "shape"), [(None, [1, 8]), (0, [8])])
def test_servers_without_model_config_or_batching_can_be_driven(
    client: str, limit: int | None, shape: list[int]
) -> None:
    async def main() -> None:
        servicer = Servicer(max_batch_size=limit)
        async with serving(servicer) as url:
            await measure(client, url, "--request-count", "1")
        assert list(servicer.requests[0].inputs[0].shape) == shape

    asyncio.run(main())


def test_targets_take_turns_level_by_level() -> None:
    async def main() -> None:
        begun: list[tuple[str, float]] = []

        class Noting(show.Plain):
            def begin(self, target: Any, load: float, tally: Any) -> None:
                begun.append((target.label, load))

        async with serving(Servicer()) as url:
            flags = ["--target", f"a=m@{url}", "--target", f"b=m@{url}", "--concurrency-range", "1:3"]
            parsed = options.parse([*flags, *SHAPES, "--request-count", "2", "--warmup-request-count", "0"])
            found = await run.measure(parsed, Noting(CONCURRENCY, lambda text: None), asyncio.Event())
        assert begun == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]
        assert [[level.load for level in target.levels] for target in found.targets] == [[1, 2, 3]] * 2

    asyncio.run(main())


def test_a_stop_gives_what_was_measured(client: str) -> None:
    async def main() -> None:
        stop = asyncio.Event()

        class Stopping(Servicer):
            async def answer(self, number: int, context: Any) -> None:
                if number == 5:
                    stop.set()
                    await asyncio.Event().wait()

        async with serving(Stopping()) as url:
            flags = ("--warmup-request-count", "0", "--concurrency-range", "1:9")
            found = await measure(client, url, *flags, stop=stop)
        assert found.interrupted
        assert [(level.requests, level.errors) for level in found.levels] == [(5, {})]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("-x", "1", "-b", "9"), "at most 8 rows"),
        (("--shape", "nope:3"), "no such input"),
        (("--input-data", "/nowhere/in.json"), "No such file"),
    ],
)
def test_what_the_model_cannot_take_is_told_before_anything_is_sent(
    client: str, flags: tuple[str, ...], text: str
) -> None:
    async def main() -> None:
        servicer = Servicer()
        async with serving(servicer) as url:
            with pytest.raises(LoadError, match=text):
                await measure(client, url, *flags)
        assert servicer.requests == []

    asyncio.run(main())


@pytest.mark.slow
def test_the_exit_status_tells_how_it_went(tmp_path: Path) -> None:
    class Broken(Servicer):
        async def answer(self, number: int, context: Any) -> None:
            await context.abort(grpc.StatusCode.INTERNAL, "broken")

    async def main() -> None:
        quick = (*SHAPES, "--request-count", "5", "--warmup-request-count", "0", "--no-progress")
        async with serving(Servicer()) as url, serving(Broken()) as broken:
            files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "html")}
            writing = ("--json", str(files["json"]), "-f", str(files["csv"]), "--html", str(files["html"]))
            good, failing, unknown, shapeless, absent, folder, flame = await asyncio.gather(
                tool("-m", "m", "-u", url, *quick, *writing),
                tool("-m", "m", "-u", broken, *quick),
                tool("-m", "other", "-u", url, *quick),
                tool("-m", "m", "-u", url),
                tool("-m", "m", "-u", "127.0.0.1:1", *quick),
                tool("-m", "m", "-u", url, "--json", str(tmp_path / "none" / "out.json")),
                tool("-m", "m", "-u", url, "--flame", str(tmp_path / "none" / "out.svg")),
            )
        assert (good[0], good[2]) == (0, "")
        assert "in flight" in good[1]
        assert "where the time went is unknown: the server tells no statistics" in good[1]
        assert result.read(files["json"]).levels[0].succeeded == 5
        assert len(result.read_csv(files["csv"])) == 1
        assert "</html>" in files["html"].read_text()
        assert failing[0] == 1
        assert "5 × INTERNAL: broken" in failing[1]
        for (status, out, err), text in (
            (unknown, "model 'other'"),
            (shapeless, "--shape input_ids:N"),
            (absent, "no server of the protocol answers at 127.0.0.1:1"),
            (folder, "no such folder"),
            (flame, "no such folder"),
        ):
            assert (status, out) == (2, "")
            assert err.startswith("load: ")
            assert text in err
            assert err.count("\n") == 1

    asyncio.run(main())
