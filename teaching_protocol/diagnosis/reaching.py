"""What a teacher says when it is asked for its card: version, clock, how long the answer takes; opens no session."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.errors import TeacherUnavailable
from teaching_protocol.verbs import PROTOCOL_VERSION, Call, DescribeReply, DescribeRequest, TeacherVerbs

__all__ = ["check_card", "check_clock", "check_latency"]

_PINGS, _GLANCES = 30, 5
_SLOW_MS = 50.0
_SKEW_S, _SKEW_TOO_LARGE_S = 2.0, 300.0
_SHOWN = ("model_name", "family", "dtype", "layers", "entry", "exit", "deterministic")


def check_card(teacher: TeacherVerbs, call_s: float, take: Callable[[DescribeReply], None]) -> Finding:
    """The teacher's card, which is handed to `take` where its version of the protocol is this one's."""
    try:
        card = teacher.describe(DescribeRequest(), _in(call_s))
    except TeacherUnavailable as error:
        return Finding(
            "teacher", "fail", str(error), "see the checks connection and tls, and whether a proxy stands between"
        )
    values: dict[str, Value] = {name: getattr(card, name) for name in _SHOWN}
    values |= {"protocol": card.protocol_version, "model_hash": card.model_hash[:12]}
    if card.protocol_version != PROTOCOL_VERSION:
        measured = f"the teacher speaks protocol version {card.protocol_version}, this side {PROTOCOL_VERSION}"
        return Finding("teacher", "fail", measured, "install the same release of talking-models on both sides", values)
    take(card)
    span = f"layers {card.entry} to {card.exit} of {card.layers}"
    measured = f"{card.model_name} ({card.model_hash[:12]}), {card.family}, {card.dtype}, {span}"
    return Finding("teacher", "ok", measured, "", values)


def check_clock(teacher: TeacherVerbs, clock_s: Callable[[], float], call_s: float) -> Finding:
    """The server's clock against this machine's, from the quickest of a few answers: true to half its round trip.

    Args:
        teacher: who is asked.
        clock_s: what the server's clock said with the last answer; 0 where it did not say.
        call_s: deadline of each call.
    """
    seen = []
    for _ in range(_GLANCES):
        began, clock_began = time.monotonic(), time.time()
        teacher.describe(DescribeRequest(), _in(call_s))
        trip_s = time.monotonic() - began
        seen.append((trip_s, clock_s() - (clock_began + trip_s / 2)))
    if not clock_s():
        return Finding("clock", "skip", "the server does not tell its time: it is of an older release")
    trip_s, skew_s = min(seen)
    values: dict[str, Value] = {"skew_s": round(skew_s, 6), "uncertainty_s": round(trip_s / 2, 6)}
    measured = f"the server's clock is {skew_s:+.4f} s from this one (within {trip_s / 2:.4f} s)"
    excess_s = abs(skew_s) - trip_s / 2
    if excess_s > _SKEW_S:
        advice = "set both clocks by the same time server: certificates are judged and logs are read by them"
        return Finding("clock", "fail" if excess_s > _SKEW_TOO_LARGE_S else "warn", measured, advice, values)
    return Finding("clock", "ok", measured, "", values)


def check_latency(teacher: TeacherVerbs, call_s: float) -> Finding:
    """Round trips of small calls that wait behind no work."""
    moments = [time.monotonic()]
    for _ in range(_PINGS):
        teacher.describe(DescribeRequest(), _in(call_s))
        moments.append(time.monotonic())
    trips_ms = sorted(1e3 * (end - start) for start, end in pairwise(moments))
    median_ms, p95_ms = statistics.median(trips_ms), trips_ms[int(0.95 * (_PINGS - 1))]
    values: dict[str, Value] = {"median_ms": round(median_ms, 3), "p95_ms": round(p95_ms, 3), "calls": _PINGS}
    measured = f"{median_ms:.2f} ms a round trip in the median, {p95_ms:.2f} ms at 95% (of {_PINGS})"
    if median_ms > _SLOW_MS:
        advice = (
            "a step waits for three round trips: bring both sides together, or set training.accumulation to 2 or more"
        )
        return Finding("latency", "warn", measured, advice, values)
    return Finding("latency", "ok", measured, "", values)


def _in(seconds: float) -> Call:
    return Call(time.monotonic() + seconds)
