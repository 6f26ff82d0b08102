"""What flags of the command line have in common: their values, their one-line mistakes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

INT32_MAX = (1 << 31) - 1


class SettingsError(ValueError):
    """A flag or its value that cannot be used: one line naming flag, value and what is allowed."""


def truth(flag: str) -> Callable[[str], bool]:
    def read(text: str) -> bool:
        known = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
        if text.lower() not in known:
            raise argparse.ArgumentTypeError(f"{flag} is {text!r}, allowed are true and false")
        return known[text.lower()]

    return read


def whole(flag: str, low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{flag} is {text!r}, allowed is a whole number from {low} to {high}")
        return value

    return read


def truth_flag(group: argparse._ArgumentGroup, flag: str, default: bool, text: str) -> None:
    # Triton's booleans want a value; without one they mean true, as in `--disable-auto-complete-config`
    group.add_argument(flag, type=truth(flag), default=default, nargs="?", const=True, metavar="true|false",
                       help=f"{text} (default {str(default).lower()})")  # fmt: skip


def whole_flag(group: argparse._ArgumentGroup, flag: str, default: int, low: int, high: int, text: str) -> None:
    group.add_argument(flag, type=whole(flag, low, high), default=default, metavar="N",
                       help=f"{text} (default {default})")  # fmt: skip
