"""A doctor's findings on the screen: a row each, what to change below it; or as JSON."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from teaching_protocol.diagnosis.findings import Exit, Finding, Report, Status

__all__ = ["show"]

_COLOURS: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def show(doctor: str, subject: str, findings: Iterable[Finding], as_json: bool) -> Exit:
    """Writes the findings to the standard output, as a table or as one JSON object and nothing else; gives the exit code."""
    console = Console(stderr=True, highlight=False)
    found = []
    with console.status("", spinner="dots") as status:
        status.update(f"{doctor}: looking at {escape(subject)}")
        for finding in findings:
            found.append(finding)
            status.update(f"{doctor}: looking at {escape(subject)}, {len(found)} checks done")
    report = Report(doctor, subject, tuple(found))
    if as_json:
        sys.stdout.write(report.as_json() + "\n")
    else:
        _print(report)
    return report.exit_code


def _print(report: Report) -> None:
    table = Table(title=f"{report.doctor}: {escape(report.subject)}", show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("measured, and what to change", overflow="fold")
    for finding in report.findings:
        colour = _COLOURS[finding.status]
        said = _harmless(finding.measured)
        if finding.advice:
            said += f"\n[{colour}]→ {_harmless(finding.advice)}[/]"
        table.add_row(finding.check, f"[{colour}]{finding.status}[/]", said)
    console = Console(highlight=False)
    console.print(table)
    counts = Counter(finding.status for finding in report.findings)
    console.print(", ".join(f"{counts[status]} {status}" for status in _COLOURS if counts[status]))


def _harmless(sentence: str) -> str:
    """Without what a terminal would obey: names and errors in it came from the other side."""
    return escape("".join(sign if sign.isprintable() else "?" for sign in sentence))
