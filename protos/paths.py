"""What may name an entry, a version folder and a file inside one. Every name from outside is asked here first."""

from __future__ import annotations

import re

NAME_BYTES = 255
"""Longest file name of the usual file systems."""
INT64_MAX = 2**63 - 1
_VERSION = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def name_problem(name: str) -> str:
    """Why `name` is not one plain, visible folder name; empty where it is."""
    if not name:
        return "is empty"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if length > NAME_BYTES:
        return f"takes {length} bytes, at most {NAME_BYTES} are allowed"
    if name.startswith("."):
        return "begins with a dot, which marks staging"
    if not name.isprintable() or set(name) & {"/", "\\"}:
        return "holds a slash, backslash or unprintable character"
    return ""


def relative_problem(path: str) -> str:
    """Why `path` is not a posix path that stays below its folder; empty where it is."""
    for part in path.split("/"):
        if problem := name_problem(part):
            return f"has a part that {problem}" if "/" in path else problem
    return ""


def version_number(name: str) -> int | None:
    """The version that a folder name stands for, None for any other (core: model_lifecycle.cc VersionsToLoad)."""
    if not _VERSION.fullmatch(name) or int(name) > INT64_MAX:
        return None
    return int(name)
