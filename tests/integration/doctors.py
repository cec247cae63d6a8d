"""Runs the doctors' commands in this process, and reads the JSON object they print."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any

import typer
from typer.testing import CliRunner

from student_client.cli import build_app
from teacher_server.cli import app as server_app
from teaching_protocol.diagnosis.findings import SCHEMA

__all__ = ["Visit", "ask_server_doctor", "ask_student_doctor"]

FIELDS = {"check", "status", "measured", "advice", "values"}


@dataclass(frozen=True)
class Visit:
    """What a doctor printed, and its exit code."""

    exit_code: int
    report: dict[str, Any]

    def __getitem__(self, check: str) -> dict[str, Any]:
        (found,) = (each for each in self.report["findings"] if each["check"] == check)
        return dict(found)

    def statuses(self, *but: str) -> set[str]:
        """Of all checks; those that depend on how busy this machine is, and those named, are left out."""
        left_out = {"threads", "memory", "latency", "bandwidth", *but}
        return {each["status"] for each in self.report["findings"] if each["check"] not in left_out}


def ask_student_doctor(*words: str) -> Visit:
    return _ask(build_app(), ["doctor", "--json", *words])


def ask_server_doctor(*words: str) -> Visit:
    return _ask(server_app, ["doctor", "--json", *words])


def _ask(app: typer.Typer, words: list[str]) -> Visit:
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(app, words)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    report = json.loads(done.stdout)  # nothing else is printed
    assert report["schema"] == SCHEMA
    assert report["exit_code"] == done.exit_code
    assert all(set(each) == FIELDS for each in report["findings"])
    assert all(each["advice"] for each in report["findings"] if each["status"] in ("warn", "fail"))
    return Visit(done.exit_code, report)
