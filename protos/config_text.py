"""`config.pbtxt` and its JSON twin: text in, ModelConfig out, and back. The only place that knows text formats."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from google.protobuf import json_format, text_format

from protos.config_check import one_line
from protos.config_message import from_message, to_message
from protos.model_config import ConfigError, ModelConfig
from protos.wire import POOL
from protos.wire import config as pb

__all__ = ["MAX_BYTES", "dump", "from_json", "from_message", "parse", "to_json", "to_message"]

MAX_BYTES = 1 << 20
"""Of text. The parser is Python: a megabyte takes it about a second, and real files take kilobytes."""
MAX_BACKSLASHES = 64
"""In a row: protobuf unescapes with an expression that takes quadratic time over them, minutes for a megabyte."""


def parse(text: str, where: str) -> ModelConfig:
    """The configuration that a `config.pbtxt` holds, validated.

    `where` names the file in errors. Raises ConfigError: one line with file, line, field and what is allowed.
    """
    _check_text(text, where)
    message = pb.ModelConfig()
    try:
        text_format.Parse(text, message, descriptor_pool=POOL)
    except text_format.ParseError as error:
        line = error.GetLine()
        at = f"{where}:{line}" if line else where
        quoted = text.split("\n")[line - 1] if line else ""
        raise ConfigError(f"{at}: {_explain(str(error), quoted)}") from None
    return from_message(message, where)


def dump(config: ModelConfig) -> str:
    """Text that `parse` reads back to an equal configuration, and a Triton server too. Raises ConfigError."""
    message = to_message(config)
    return text_format.MessageToString(message, use_index_order=True, use_short_repeated_primitives=True)


def from_json(text: str, where: str) -> ModelConfig:
    """The configuration that the `config` parameter of a load request holds. Raises ConfigError."""
    _check_text(text, where)
    if not text.lstrip().startswith("{"):
        raise ConfigError(f"{where}: is no JSON object")
    message = pb.ModelConfig()
    try:
        json_format.Parse(text, message, descriptor_pool=POOL)
    except json_format.ParseError as error:
        raise ConfigError(f"{where}: {_explain(str(error))}") from None
    return from_message(message, where)


def to_json(config: ModelConfig) -> str:
    """JSON that `from_json` reads back to an equal configuration, with the field names of `config.pbtxt`."""
    return json_format.MessageToJson(to_message(config), preserving_proto_field_name=True, descriptor_pool=POOL)


def _check_text(text: str, where: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: character {error.start} is not valid Unicode") from None
    if size > MAX_BYTES:
        raise ConfigError(f"{where}: {size} bytes of configuration, at most {MAX_BYTES} are allowed")
    if "\\" * MAX_BACKSLASHES in text:
        raise ConfigError(f"{where}: {MAX_BACKSLASHES} backslashes in a row are not allowed")


_POSITION = re.compile(r"^\d+:\d+ : ")
_NO_FIELD = re.compile(r'essage type "([\w.]+)" has no field named "(.*?)"', re.DOTALL)
_NO_VALUE = re.compile(r"(?:Enum type \"|enum type )([\w.]+)\"? has no value named (\S+?)\.?$")
_BAD_VALUE = re.compile(r"Invalid enum value (\S+) for enum type ([\w.]+)")


def _explain(error: str, quoted: str = "") -> str:
    """The parser's message without the position and the `quoted` line, with what would be allowed."""
    error = _POSITION.sub("", error).removeprefix(f"'{quoted}': ").removeprefix("'': ")
    if found := _NO_FIELD.search(error):
        message = POOL.FindMessageTypeByName(found[1])
        return f"{message.name} has no field '{one_line(found[2], 80)}'; {_allowed(found[2], message.fields_by_name)}"
    if found := _NO_VALUE.search(error):
        name, value = found[1], found[2]
    elif found := _BAD_VALUE.search(error):
        value, name = found[1], found[2]
    else:
        return one_line(error)
    enum = POOL.FindEnumTypeByName(name)
    return f"'{one_line(value, 80)}' is no {enum.name}; {_allowed(value, enum.values_by_name)}"


def _allowed(given: str, names: Iterable[str]) -> str:
    known = list(names)
    close = difflib.get_close_matches(given[:80], known, n=1, cutoff=0.8)
    return f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(known)}"
