"""The log: one event is one line on standard error, readable or JSON, whatever a client put into an id or a name.

Everything logs through `log`; fields are keyword arguments, so that both forms carry the same facts.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from server.settings import Settings

LINE_LIMIT = 8192
"""Characters of a line; longer ones are cut (an error text can echo a client's megabyte)."""
VALUE_LIMIT = 1024

_LETTERS = {logging.DEBUG: "V", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "E"}
_NAMES = {"V": "verbose", "I": "info", "W": "warning", "E": "error"}


def clean(text: object, limit: int = VALUE_LIMIT) -> str:
    """One printable line: control, separator and other unprintable characters escaped, cut at `limit`."""
    raw = str(text)
    cut = raw[:limit]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in cut)
    return cut if len(raw) <= limit else f"{cut}… ({len(raw)} characters)"


class _Form(logging.Formatter):
    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        letter = _LETTERS.get(record.levelno, "I")
        when = datetime.fromtimestamp(record.created, UTC)
        text = clean(record.getMessage(), LINE_LIMIT)
        if record.exc_info and record.exc_info[1] is not None:
            # a defect of ours: where it happened must be known, still on one line
            trace = self.formatException(record.exc_info)
            fields = {**fields, "defect": trace if self._form == "json" else clean(trace, LINE_LIMIT)}
        if self._form == "json":
            event = {"time": when.isoformat(), "level": _NAMES[letter], "event": text}
            return json.dumps(event | {k: _plain(v) for k, v in fields.items()})
        stamp = when.strftime("%Y-%m-%dT%H:%M:%SZ " if self._form == "ISO8601" else "%m%d %H:%M:%S.%f")
        head = f"{stamp}{letter}" if self._form == "ISO8601" else f"{letter}{stamp}"
        tail = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        return f"{head} {record.process}] {text}{tail}"[:LINE_LIMIT]


def _plain(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) or value is None else clean(value, LINE_LIMIT)


def _quoted(value: object) -> str:
    text = clean(value, LINE_LIMIT)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=') else text


class Log:
    """Events by level; `verbose` is off unless `--log-verbose` is at least 1."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    @property
    def is_verbose(self) -> bool:
        """Whether `verbose` writes: callers on the hot path ask first."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def verbose(self, event: str, **fields: object) -> None:
        self._logger.debug("%s", event, extra={"fields": fields})

    def info(self, event: str, **fields: object) -> None:
        self._logger.info("%s", event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        self._logger.warning("%s", event, extra={"fields": fields})

    def error(self, event: str, **fields: object) -> None:
        self._logger.error("%s", event, extra={"fields": fields})

    def defect(self, event: str, error: BaseException, **fields: object) -> None:
        """An exception that should not have been possible: logged with its trace, on one line."""
        self._logger.error("%s", event, exc_info=error, extra={"fields": fields})


_logger = logging.getLogger("demiglace.server")
log = Log(_logger)


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Point `log` at `stream` (standard error) in the form and at the levels of the settings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Form(settings.log_format))
    on = {logging.INFO: settings.log_info, logging.WARNING: settings.log_warning, logging.ERROR: settings.log_error}
    handler.addFilter(lambda record: on.get(record.levelno, True))
    for old in list(_logger.handlers):
        _logger.removeHandler(old)
    _logger.addHandler(handler)
    _logger.setLevel(logging.DEBUG if settings.log_verbose else logging.INFO)
    _logger.propagate = False
