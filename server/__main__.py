"""`python -m server --model-repository DIR`: settings first, heavy imports only once they are known to be good."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server.settings import from_command_line


def main(argv: Sequence[str] | None = None) -> int:
    settings = from_command_line(argv)
    from server import app, logs

    logs.configure(settings)
    return app.run(settings)


if __name__ == "__main__":
    sys.exit(main())
