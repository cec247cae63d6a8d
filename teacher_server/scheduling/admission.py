"""Who may come in: permits in all, an even share of them for each lane, tokens a second; its caller holds the lock.

A call without a permit is refused at once with the seconds after which to ask again. Nothing waits here.
"""

from __future__ import annotations

from collections import Counter

from teacher_server.live import LiveSettings
from teacher_server.scheduling.identities import Rates
from teacher_server.scheduling.quotas import TokenBucket, identity_quota_of, quota_of
from teaching_protocol.errors import Overloaded, QuotaExceeded

__all__ = ["Admission"]

_LEAST_S, _MOST_S = 0.05, 5.0


class Admission:
    """Permits and token buckets.

    Attributes:
        held: permits that are taken.
    """

    def __init__(self, live: LiveSettings) -> None:
        self.held = 0
        self._live = live
        self._lanes: Counter[str] = Counter()
        self._buckets: dict[str, TokenBucket] = {}
        self._rates = Rates(
            lambda owner: identity_quota_of(owner, live.now.identity_quotas).tokens_per_s, "tokens a second"
        )
        self._job_s = 0.05

    def refusal(self) -> Overloaded | None:
        """Why anybody would be refused now, or None."""
        permits = self._live.now.permits
        if self.held < permits:
            return None
        return Overloaded(f"all {permits} permits are taken; try again later", self._delay_s(self.held))

    def enter(self, lane: str, student: str, tokens: float, now: float, owner: str = "") -> None:
        """Takes a permit for a job of a lane, of an owner's.

        Raises:
            Overloaded: every permit is taken.
            QuotaExceeded: the lane has its share of them, or the lane or its owner their tokens for now.
        """
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        share = self._share(lane)
        if self._lanes[lane] >= share:
            raise QuotaExceeded(
                f"this session has {self._lanes[lane]} calls under way, its share of the permits is {share} now; "
                "wait for their replies, or try again later",
                self._delay_s(self._lanes[lane]),
            )
        self._rates.take(owner, tokens, now)
        self._pay(lane, student, tokens, now)
        self._lanes[lane] += 1
        self.held += 1

    def leave(self, lane: str) -> None:
        """Gives a permit back."""
        self.held -= 1
        self._lanes[lane] -= 1
        if not self._lanes[lane]:
            del self._lanes[lane]

    def learn(self, seconds: float) -> None:
        """Takes in how long a job kept the engine, for the delay that others are told."""
        self._job_s += 0.1 * (seconds - self._job_s)

    def forget(self, lane: str) -> None:
        """A lane has ended."""
        self._buckets.pop(lane, None)

    def weight(self, student: str) -> float:
        """The student's share next to others."""
        return quota_of(student, self._live.now.quotas).weight

    def _share(self, lane: str) -> int:
        """Permits one lane may hold: an even part of them among those who hold any."""
        others = len(self._lanes) - (lane in self._lanes)
        return max(1, self._live.now.permits // (others + 1))

    def _pay(self, lane: str, student: str, tokens: float, now: float) -> None:
        rate = quota_of(student, self._live.now.quotas).tokens_per_s
        if not rate:
            return
        bucket = self._buckets.setdefault(lane, TokenBucket(rate))
        delay_s = bucket.take(tokens, now, rate)
        if delay_s:
            raise QuotaExceeded(f"this session may use {rate:g} tokens a second and has used them; ask later", delay_s)

    def _delay_s(self, ahead: int) -> float:
        """About when half of the calls ahead are done."""
        return min(_MOST_S, max(_LEAST_S, ahead * self._job_s / 2))
