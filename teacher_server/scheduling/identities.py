"""What one identity may take, however many students and sessions it has: rates and calls under way; no clock.

The rules are in the configuration (`identity_quotas`); an identity without a name (nobody is asked who they are) has none.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable

from teacher_server.config import IdentityQuota
from teacher_server.live import LiveSettings
from teacher_server.scheduling.quotas import TokenBucket, identity_quota_of
from teaching_protocol.errors import QuotaExceeded

__all__ = ["IdentityDoor", "Rates"]

_IDENTITIES = 4096
_RETRY_S = 0.1
_MINUTE_S = 60.0


class Rates:
    """A bucket for each identity, the 4096 last used; its caller holds a lock.

    Args:
        rate: units a second of an identity; 0 has no limit.
        unit: what is counted, for the sentence.
    """

    def __init__(self, rate: Callable[[str], float], unit: str) -> None:
        self._rate = rate
        self._unit = unit
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, identity: str, amount: float, now: float) -> None:
        """Takes an amount.

        Raises:
            QuotaExceeded: it is in debt; says when it is paid.
        """
        rate = self._rate(identity)
        if not rate:
            return
        bucket = self._buckets.setdefault(identity, TokenBucket(rate))
        self._buckets.move_to_end(identity)
        if len(self._buckets) > _IDENTITIES:
            self._buckets.popitem(last=False)
        delay_s = bucket.take(amount, now, rate)
        if delay_s:
            raise QuotaExceeded(f"this identity may use {rate:g} {self._unit} and has used them; ask later", delay_s)


class IdentityDoor:
    """Calls an identity has open, and how often it enrolls."""

    def __init__(self, live: LiveSettings) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._enrolls = Rates(lambda identity: self._quota(identity).enrolls_per_minute / _MINUTE_S, "enrolls a second")

    def __len__(self) -> int:
        return self._open.total()

    def enter(self, identity: str, enrolls: bool, now: float) -> None:
        """Opens a call.

        Raises:
            QuotaExceeded: the identity has as many open as it may, or enrolls too often.
        """
        with self._lock:
            most = self._quota(identity).in_flight
            if most and self._open[identity] >= most:
                raise QuotaExceeded(
                    f"this identity has {most} calls open, which is the limit; read their replies, or try again later",
                    _RETRY_S,
                )
            if enrolls:
                self._enrolls.take(identity, 1.0, now)
            self._open[identity] += 1

    def leave(self, identity: str) -> None:
        """The call's reply was delivered, or its caller has gone."""
        with self._lock:
            self._open[identity] -= 1
            if not self._open[identity]:
                del self._open[identity]

    def _quota(self, identity: str) -> IdentityQuota:
        return identity_quota_of(identity, self._live.now.identity_quotas)
