"""`python -m compressor RECIPE`: one job from recipe to published entry. Exit statuses are those of `errors.py`."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from compressor import recipe, run
from compressor.errors import JobError

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run a job and say how it went; the exit status."""
    options = _parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        job = recipe.load(options.recipe)
        run.check(job)
        if options.check:
            print(f"{job.recipe}: right; {len(job.passes)} passes: {', '.join(one.name for one in job.passes)}")
            return 0
        return run.run(job, options)
    except JobError as error:
        if options.verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on: finished passes are kept", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demiglace compress",
        description="Run one compression job: a trained model in, a repository entry out.",
        epilog="exit status: 0 published, 1 a pass failed, 2 recipe, data or model are wrong, 3 the technique does not "
        "pay here, 4 the result breaks the budget, 130 interrupted",
    )
    parser.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE",
        help=f"a TOML file, or one of those packaged: {', '.join(recipe.packaged()) or 'none'}",
    )
    parser.add_argument("--fresh", action="store_true", help="forget finished passes and run all of them again")
    parser.add_argument("--no-publish", action="store_true", help="measure and report, but publish nothing")
    parser.add_argument(
        "--no-latency",
        action="store_true",
        help="do not start a server to measure; limits on latency then go unchecked and nothing is "
        "published that has any",
    )
    parser.add_argument("--check", action="store_true", help="only check the recipe")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".demiglace"),
        metavar="DIR",
        help="where finished passes are kept (default: .demiglace)",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="where the report is written (default: reports)",
    )
    parser.add_argument("--verbose", action="store_true", help="with an error, show where it came from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
