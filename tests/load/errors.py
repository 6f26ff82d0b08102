"""The one error that ends a load test before it has measured anything."""

from __future__ import annotations


class LoadError(Exception):
    """The user's mistake or an absent server; the text is one line, and the tool exits with status 2."""
