"""The server's log: one line a record, as text or as JSON, with the call's facts beside the sentence; knows no call.

Nothing that opens a door is written: tokens never reach a record, and of a session's id only its first characters do.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

__all__ = ["JsonLines", "TextLines", "facts_of", "set_level", "start_log"]

_FACTS = ("method", "identity", "student", "session", "call_id", "step")
_CHARACTERS = 200  # of a fact that a client chose
_SESSION_CHARACTERS = 8  # enough to follow one session, not enough to use it


def start_log(as_json: bool, level: str = "info") -> None:
    """Sends the log to the standard error, one line a record, from a level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(handlers=[handler])
    set_level(level)


def set_level(level: str) -> None:
    """The least that is said from now on: debug, info, warning or error. Libraries say nothing below info."""
    number = getattr(logging, level.upper())
    logging.getLogger().setLevel(max(number, logging.INFO))
    logging.getLogger(__package__).setLevel(number)


def facts_of(method: str, request: Any, identity: str, student: str, step: int | None) -> dict[str, Any]:
    """What a record says of a call, for `extra`: whose it is, its id and its step; what is not known is left out."""
    ref = getattr(request, "session", None)
    opens = getattr(request, "resume", "") or (ref.session_id if ref is not None else "")
    call_id = getattr(request, "call_id", "")
    found = {
        "method": method,
        "identity": identity,
        "student": student,
        "session": opens[:_SESSION_CHARACTERS],
        "call_id": call_id.replace(opens, "…") if opens else call_id,
        "step": getattr(request, "step", step),
    }
    return {"facts": {name: _short(value) for name, value in found.items() if value not in ("", None)}}


class JsonLines(logging.Formatter):
    """Each record as one JSON object: time, level, logger, message, the facts, and an exception's text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {name: value for name, value in getattr(record, "facts", {}).items() if name in _FACTS}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


class TextLines(logging.Formatter):
    """Each record as one line of text; control characters that a client sent are written as escapes."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and an exception's stack under it."""
        time, message = self.formatTime(record), _printable(record.getMessage())
        facts = "".join(f" {name}={_printable(str(value))}" for name, value in getattr(record, "facts", {}).items())
        line = f"{time} {record.levelname} {record.name}: {message}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _short(value: Any) -> Any:
    return value[:_CHARACTERS] if isinstance(value, str) else value


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
