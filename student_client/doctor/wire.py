"""How fast large messages travel: through the connection, and through memory shared with a teacher on this host."""

from __future__ import annotations

import statistics
import time

from student_client.doctor.visit import Visit
from teaching_protocol.diagnosis.findings import Finding, Value
from teaching_protocol.diagnosis.probe import TOKENS, Probe, noise, probe_settings
from teaching_protocol.shared_memory import Ticket, can_share, host_mark
from teaching_protocol.verbs import Call, DescribeReply, DescribeRequest

__all__ = ["check_bandwidth", "check_shared_memory"]

_SIZES = (2**17, 2**20, 2**22)
_ROUNDS = 3
_WIDEST, _CODEC_NUMBERS = 2048, 4_000_000
_SLOW_MB_S = 30.0


def check_bandwidth(visit: Visit) -> Finding:
    """Messages of a few sizes and their answers, less what the teacher says it waited and computed.

    The messages are wide and few, so that they are many bytes and little work: 64 tokens a MiB and less.
    """
    probe = _wide(visit)
    speeds = {size: _speed(probe, size) for size in _SIZES if _fits(visit.card, size)}
    probe.leave()
    values: dict[str, Value] = {f"mb_per_s_{_named(size)}": round(speed, 1) for size, speed in speeds.items()}
    values["message_width"] = probe.settings.message_width
    measured = ", ".join(f"{_named(size)} {speed:.0f} MB/s" for size, speed in speeds.items())
    if max(speeds.values()) < _SLOW_MB_S:
        advice = "set teacher.compression to int8, send fewer message tokens, or bring student and teacher together"
        return Finding("bandwidth", "warn", f"both ways together: {measured}", advice, values)
    return Finding("bandwidth", "ok", f"both ways together: {measured}", "", values)


def check_shared_memory(visit: Visit) -> Finding:
    """Whether large messages go through shared memory, how fast, or why not."""
    why = _why_not(visit.card)
    if why:
        return Finding("shared_memory", "ok", f"not used: {why}", "", {"used": False})
    transport = visit.connect(shared_memory=True)
    transport.describe(DescribeRequest(), _call(visit))
    probe = _wide(visit)
    probe.teacher = transport
    speed = _speed(probe, 2**20)
    probe.teacher = visit.transport
    probe.leave()
    if not transport.bytes_shared:
        advice = "see the server's log: it takes no more connections, or another process has its socket's name"
        return Finding(
            "shared_memory", "warn", "the teacher is on this host, but shares no memory", advice, {"used": False}
        )
    measured = f"used: 1 MiB at {speed:.0f} MB/s, both ways together"
    return Finding("shared_memory", "ok", measured, "", {"used": True, "mb_per_s_1MiB": round(speed, 1)})


def _why_not(card: DescribeReply) -> str:
    """In words; the ticket on the card is for nobody's eyes."""
    ticket = Ticket.parse(card.same_host)
    if not can_share():
        return "this system has no memfd"
    if ticket is None or not ticket.name:
        return "the server does not offer it (--no-shared-memory, or no Linux)"
    if ticket.mark != host_mark():
        return "the teacher is on another host, or in another container's network"
    return ""


def _wide(visit: Visit) -> Probe:
    widest = max(1, _CODEC_NUMBERS // max(visit.card.widths[visit.card.entry], visit.card.widths[visit.card.exit]))
    return visit.enroll("wire", probe_settings(visit.card, min(_WIDEST, widest)))


def _speed(probe: Probe, size_bytes: int) -> float:
    """MB a second, of message and answer, in the median of a few rounds after a first one."""
    width = probe.settings.message_width
    rows = max(1, size_bytes // (4 * TOKENS * width))
    message = noise(rows, TOKENS, width)
    speeds = []
    for _ in range(1 + _ROUNDS):
        reply = probe.forward(message)
        carried_s = max(1e-6, reply.wait_s - reply.queue_s - reply.compute_s)
        speeds.append((message.nbytes + reply.answer.nbytes) / 1e6 / carried_s)
    return statistics.median(speeds[1:])


def _fits(card: DescribeReply, size_bytes: int) -> bool:
    rows = size_bytes // (4 * TOKENS * _WIDEST)
    return size_bytes == _SIZES[0] or (2 * size_bytes < card.limits.message_bytes and 4 * rows < card.limits.rows)


def _named(size_bytes: int) -> str:
    return f"{size_bytes // 2**20}MiB" if size_bytes >= 2**20 else f"{size_bytes // 2**10}KiB"


def _call(visit: Visit) -> Call:
    return Call(time.monotonic() + visit.call_s)
