"""`python -m tests.load`: parse, measure, report; the exit status says how it went (see --help)."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.load import options as command_line
from tests.load import page, result, run, show
from tests.load.errors import LoadError
from tests.load.options import Options
from tests.load.result import CONCURRENCY, REQUEST_RATE, Run

MEASURED, ALL_FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
TICK_S = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = command_line.parse(sys.argv[1:] if arguments is None else arguments)
        writers = _writers(options)
        found = run.run_loop(lambda: _measure(options), options.connections * len(options.targets))
        show.report(found, options.percentile)
        if options.flame is not None and not found.interrupted:
            print(f"flame graph of the server during the last level, which sampling slowed: {options.flame}")
        for path, write in writers:
            _write(path, write, found)
    except LoadError as error:
        print(f"load: {error}", file=sys.stderr)
        return MISTAKE
    if found.interrupted:
        return INTERRUPTED
    return ALL_FAILED if any(not any(level.succeeded for level in t.levels) for t in found.targets) else MEASURED


async def _measure(options: Options) -> Run:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    display = show.display(REQUEST_RATE if options.open_loop else CONCURRENCY, options.progress)

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            display.tick()

    ticking = asyncio.create_task(tick())
    try:
        return await run.measure(options, display, stop)
    finally:
        ticking.cancel()
        display.close()


def _writers(options: Options) -> list[tuple[Path, Callable[[Run, Path], None]]]:
    """What to write where; a folder that does not exist is told before the measurement, not after it."""
    for path in (options.json, options.csv, options.html, options.flame):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise LoadError(f"cannot write {path}: " + ("it is a folder" if path.is_dir() else "no such folder"))
    wanted = ((options.json, result.write_json), (options.csv, result.write_csv), (options.html, page.write))
    return [(path, write) for path, write in wanted if path is not None]


def _write(path: Path, write: Callable[[Run, Path], None], found: Run) -> None:
    try:
        write(found, path)
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(main())
