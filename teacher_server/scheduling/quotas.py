"""What students may take by their names: weight, tokens a second, sessions, bytes; pure but for what a bucket holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from teacher_server.config import IdentityQuota, Quota
from teacher_server.live import LiveSettings
from teacher_server.sessions.sessions import Session
from teaching_protocol.errors import InvalidSetting, QuotaExceeded
from teaching_protocol.verbs import OptimizerSettings

__all__ = ["SessionQuotas", "TokenBucket", "identity_quota_of", "quota_of", "state_bytes"]

_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}
_BURST_S = 2.0
_ANY = Quota.model_validate({"students": "*"})
_ANYBODY = IdentityQuota.model_validate({"identities": "*"})


def quota_of(student: str, quotas: Collection[Quota]) -> Quota:
    """The first quota whose pattern fits the name; one without limits if none does."""
    return next((quota for quota in quotas if fnmatchcase(student, quota.students)), _ANY)


def state_bytes(parameters: int, optimizer: OptimizerSettings, ranks: int = 1) -> int:
    """Bytes a session holds for its codec: weights, gathered gradients of each rank and the optimizer's moments, float32."""
    return 4 * parameters * (1 + max(1, ranks) + _MOMENTS.get(optimizer.name, 2))


def identity_quota_of(identity: str, quotas: Collection[IdentityQuota]) -> IdentityQuota:
    """The first quota whose pattern fits; one without limits if none does, or if nobody has a name."""
    if not identity:
        return _ANYBODY
    return next((quota for quota in quotas if fnmatchcase(identity, quota.identities)), _ANYBODY)


@dataclass
class TokenBucket:
    """Tokens a second with a burst of two seconds. A call may run into debt, so that none is too large ever to fit."""

    rate: float
    level: float = 0.0
    filled: float = float("-inf")

    def take(self, tokens: float, now: float, rate: float | None = None) -> float:
        """Takes tokens and gives 0; in debt it takes none and gives the seconds until it is paid. `rate` holds from now on."""
        self.rate = self.rate if rate is None else rate
        burst = self.rate * _BURST_S
        self.level = min(burst, self.level + self.rate * (now - self.filled))
        self.filled = now
        if self.level < 0:
            return -self.level / self.rate
        self.level -= tokens
        return 0.0


class SessionQuotas:
    """How many sessions, and how many bytes of state, students may have together."""

    def __init__(self, live: LiveSettings) -> None:
        self._live = live

    def check(self, student: str, size_bytes: int, live: Collection[Session], owner: str = "") -> None:
        """Refuses a session that is one too many.

        Raises:
            InvalidSetting: its state could never fit.
            QuotaExceeded: it would fit if others of this student's quota, or of the server, had left.
        """
        quotas = self._live.now.quotas
        quota = quota_of(student, quotas)
        fellows = [session for session in live if quota_of(session.account, quotas) is quota]
        if quota.sessions and len(fellows) >= quota.sessions:
            raise QuotaExceeded(
                f"students {quota.students!r} have {len(fellows)} sessions, the quota is {quota.sessions}; "
                "leave one, or try again later",
                self._live.now.lease_s,
            )
        self._check_bytes(f"students {quota.students!r}", size_bytes, fellows, quota.state_bytes)
        self._check_owner(owner, size_bytes, [session for session in live if session.owner == owner])
        self._check_bytes("all students", size_bytes, live, self._live.now.state_bytes)

    def _check_owner(self, owner: str, size_bytes: int, own: Collection[Session]) -> None:
        quota = identity_quota_of(owner, self._live.now.identity_quotas)
        if quota.sessions and len(own) >= quota.sessions:
            raise QuotaExceeded(
                f"this identity has {len(own)} sessions, its quota is {quota.sessions}; leave one, or try again later",
                self._live.now.lease_s,
            )
        self._check_bytes("the sessions of this identity", size_bytes, own, quota.state_bytes)

    def _check_bytes(self, who: str, size_bytes: int, live: Collection[Session], limit: int) -> None:
        if not limit:
            return
        if size_bytes > limit:
            raise InvalidSetting(
                f"the session's codec and optimizer take {size_bytes:,} bytes, {who} may have {limit:,}; "
                "ask for a smaller codec"
            )
        held = sum(session.size_bytes for session in live)
        if held + size_bytes > limit:
            raise QuotaExceeded(
                f"{who} hold {held:,} bytes of codecs and optimizers and may have {limit:,}, {size_bytes:,} more were "
                "asked for; try again later, or ask for a smaller codec",
                self._live.now.lease_s,
            )
