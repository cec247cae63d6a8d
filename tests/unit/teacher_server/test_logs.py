"""The log's lines: JSON with the facts of a call, text that no client can break, and the real command writing them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_server.logs import JsonLines, TextLines, facts_of
from teaching_protocol import verbs
from teaching_protocol.errors import StepOutOfOrder
from teaching_protocol.verbs import SessionRef
from tests.calls import Caller, attempt


def record(message: str, facts: dict[str, Any] | None = None) -> logging.LogRecord:
    found = logging.LogRecord("teacher_server.x", logging.INFO, "x.py", 1, message, (), None)
    if facts is not None:
        found.facts = facts["facts"]
    return found


def test_json_has_the_facts_of_a_call() -> None:
    request = verbs.StepRequest(SessionRef("5e55" * 8, 2), 7, 0.1)
    said = json.loads(JsonLines().format(record("Step: done", facts_of("Step", request, "ann", "student-1", 6))))
    assert said["message"] == "Step: done"
    assert (said["method"], said["identity"], said["student"], said["step"]) == ("Step", "ann", "student-1", 7)
    assert said["session"] == "5e555e55"  # enough to follow it, not to use it


@pytest.mark.parametrize("lines", [JsonLines(), TextLines()], ids=["json", "text"])
@pytest.mark.parametrize("evil", ["a\nb", "\x1b[31mred", "a\r\n2026 ERROR x: forged", "\u2028", "x" * 10_000])
def test_a_client_cannot_forge_a_line(lines: logging.Formatter, evil: str) -> None:
    request = verbs.ForwardRequest(SessionRef("s", 1), evil)
    said = lines.format(record(f"Forward: {evil[:50]}", facts_of("Forward", request, "", evil, None)))
    assert len(said.splitlines()) == 1
    assert said.isprintable()
    assert len(said) < 2000


def test_what_a_request_has_not_is_left_out() -> None:
    assert facts_of("Describe", verbs.DescribeRequest(), "", "", None) == {"facts": {"method": "Describe"}}


def test_the_command_writes_json(model_folder: Callable[[str], Path]) -> None:
    words = [sys.executable, "-m", "teacher_server", "serve", "--model", str(model_folder("bert")), "--port", "0"]
    words += ["--metrics-port", "-1", "--threads", "1", "--log-json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        with Caller(address, "student one") as caller:
            assert isinstance(attempt(lambda: caller.step(3)), StepOutOfOrder)
            session = caller.session.session_id
        process.terminate()
        _, text = process.communicate(timeout=60)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    step = next(line for line in lines if line.get("method") == "Step")
    assert (step["student"], step["step"], step["session"]) == ("student one", 3, session[:8])
    assert "StepOutOfOrder" in step["message"]
    assert session not in text
    assert [line["message"] for line in lines if line.get("method") in ("Enroll", "Leave")] == [
        "Enroll: done",
        "Leave: done",
    ]
