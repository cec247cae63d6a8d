"""Runs checks one after the other, each under a limit of seconds; knows no check."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from teaching_protocol.diagnosis.findings import Finding
from teaching_protocol.errors import TeachingError

__all__ = ["Check", "run_checks"]

_LOOK_S = 0.5


@dataclass(frozen=True)
class Check:
    """A check by its name.

    Attributes:
        name: as in its finding.
        run: gives the finding; an error of the tree that it raises is a failure in itself.
        needs: names of checks before it without which it cannot be made.
        limit_s: seconds after which it is given up; None takes that of the round.
    """

    name: str
    run: Callable[[], Finding]
    needs: tuple[str, ...] = ()
    limit_s: float | None = None


def run_checks(
    checks: Sequence[Check], limit_s: float, is_over: Callable[[], bool] = lambda: False
) -> Iterator[Finding]:
    """Gives the finding of each check in turn; one whose needs failed or were skipped is skipped.

    Args:
        checks: in their order.
        limit_s: seconds of each that says no other.
        is_over: asked while a check runs; once it is true, no more findings come.
    """
    missing: set[str] = set()
    for check in checks:
        lacking = [name for name in check.needs if name in missing]
        if lacking:
            finding = Finding(check.name, "skip", f"not measured: it needs {lacking[0]}")
        else:
            finding = _limited(check, limit_s if check.limit_s is None else check.limit_s, is_over)
        if is_over():
            return
        if finding.status in ("fail", "skip"):
            missing.add(check.name)
        yield finding


def _limited(check: Check, limit_s: float, is_over: Callable[[], bool]) -> Finding:
    """Runs a check in a thread of its own, which ends with the process if the check never does."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_run(check)), name=f"check-{check.name}", daemon=True)
    thread.start()
    until = time.monotonic() + limit_s
    while thread.is_alive() and not is_over() and (left_s := until - time.monotonic()) > 0:
        thread.join(min(left_s, _LOOK_S))
    if found:
        return found[0]
    return Finding(
        check.name,
        "fail",
        f"it had not ended after {limit_s:g} s and was given up",
        "see whether machine, network and teacher are busy or stuck, then ask again with a longer --limit-s",
    )


def _run(check: Check) -> Finding:
    try:
        return check.run()
    except TeachingError as error:
        # the sentences of the tree say what was received, what was expected, and behind the last `;` what to do
        measured, _, advice = str(error).rpartition("; ")
        return Finding(check.name, "fail", f"{type(error).__name__}: {measured or advice}", advice)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return Finding(
            check.name,
            "fail",
            f"the check itself failed: {type(error).__name__}: {line}",
            "report it with the versions above; the other findings hold",
        )
