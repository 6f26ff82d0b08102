from pathlib import Path

from tests.load.result import Run


def write(run: Run, path: Path) -> None:
    path.write_text("")
