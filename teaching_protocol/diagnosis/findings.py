"""What a doctor says: findings and the report of them, with its exit code and its JSON; measures nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Literal

__all__ = ["CONNECTION", "SCHEMA", "Exit", "Finding", "Report", "Status", "Value"]

SCHEMA = 1
"""Version of the JSON object; raised when a field is renamed, removed or means something else. docs/doctor.md has the fields."""

CONNECTION = "connection"
"""The check that fails where nothing at the address speaks gRPC."""

Status = Literal["ok", "warn", "fail", "skip"]
Value = bool | int | float | str | None

_NO_VALUES: Mapping[str, Value] = MappingProxyType({})


class Exit(IntEnum):
    """Exit codes of both doctors."""

    WELL = 0
    FAILED = 1
    UNREACHED = 2  # as for wrong usage: nothing could be measured at the address
    WARNED = 3


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name, stable.
        status: ok; warn, it works but not as it should; fail, it does not work; skip, it was not measured.
        measured: what was measured, one sentence.
        advice: what to change, one sentence; empty where nothing is.
        values: the numbers behind the sentence, names with their units.
    """

    check: str
    status: Status
    measured: str
    advice: str = ""
    values: Mapping[str, Value] = field(default_factory=lambda: _NO_VALUES)

    def as_dict(self) -> dict[str, object]:
        """The finding as it stands in the JSON object."""
        return {
            "check": self.check,
            "status": self.status,
            "measured": self.measured,
            "advice": self.advice,
            "values": {name: _number(value) for name, value in self.values.items()},
        }


@dataclass(frozen=True)
class Report:
    """All findings of one doctor about one subject: an address, or this machine."""

    doctor: str
    subject: str
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> Exit:
        """Unreached before failed before warned; what was skipped counts for nothing."""
        failed = {finding.check for finding in self.findings if finding.status == "fail"}
        if CONNECTION in failed:
            return Exit.UNREACHED
        if failed:
            return Exit.FAILED
        return Exit.WARNED if any(finding.status == "warn" for finding in self.findings) else Exit.WELL

    def as_json(self) -> str:
        """The whole report as one JSON object."""
        named = {Exit.WELL: "ok", Exit.WARNED: "warn"}.get(self.exit_code, "fail")
        return json.dumps(
            {
                "schema": SCHEMA,
                "doctor": self.doctor,
                "subject": self.subject,
                "status": named,
                "exit_code": int(self.exit_code),
                "findings": [finding.as_dict() for finding in self.findings],
            },
            indent=1,
            allow_nan=False,
        )


def _number(value: Value) -> Value:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
