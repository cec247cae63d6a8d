"""The card of the teacher at an address, and how long it takes to give it; opens no session."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import Any

from student_client.connection.credentials import Credentials
from student_client.connection.transport import GrpcTransport
from teaching_protocol.verbs import Call, DescribeReply, DescribeRequest

__all__ = ["PINGS", "ask_for_card", "card_fields"]

PINGS = 10


def ask_for_card(
    address: str, deadline_s: float, credentials: Credentials, pings: int = PINGS
) -> tuple[DescribeReply, float]:
    """The card, and the median of the seconds that `pings` further calls took.

    Raises:
        TeachingError: nobody answers, or the server refuses.
        ConfigError: files that cannot be read.
    """
    transport = GrpcTransport(address, patience_s=0.0, credentials=credentials)
    try:
        times, card = [], DescribeReply()
        for _ in range(pings + 1):  # the first one opens the connection
            began = time.monotonic()
            card = transport.describe(DescribeRequest(), Call(began + deadline_s))
            times.append(time.monotonic() - began)
    finally:
        transport.close()
    return card, statistics.median(times[1:] or times)


def card_fields(card: DescribeReply) -> dict[str, Any]:
    """The card's fields, without where this host shares memory with the server: that is for this connection alone."""
    return {name: value for name, value in asdict(card).items() if name != "same_host"}
