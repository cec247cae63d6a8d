"""The configuration that holds now, swapped whole; whoever can follow a change reads it here, at each use; knows no file."""

from __future__ import annotations

from teacher_server.config import ServerConfig

__all__ = ["LIVE_FIELDS", "LiveSettings"]

LIVE_FIELDS = frozenset(
    {
        *("quotas", "identity_quotas", "permits", "session_permits", "max_sessions", "state_bytes"),
        *("max_codec_parameters", "session_replay_bytes", "call_limit_s", "rank_wait_s", "drain_s", "handoff_s"),
        *("linger", "linger_s", "linger_share", "turn_share", "alone_strikes", "refused_strikes", "refused_s"),
        "log_level",
    }
)
"""Fields that a running server takes over; all others are read once, at the start."""


class LiveSettings:
    """Holds the one frozen configuration of now; a reader that asks twice may get two.

    Attributes:
        now: the configuration; a swap is one assignment, so that nobody sees half of it.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.now = config

    def swap(
        self, wanted: ServerConfig, kept: frozenset[str] = frozenset()
    ) -> tuple[dict[str, tuple[object, object]], list[str]]:
        """Takes over the live fields of another configuration.

        Args:
            wanted: where everything is as it should be.
            kept: live fields that stay as they are this time.

        Returns:
            what changed (before, after) by field, and the names of changed fields that need a restart.
        """
        before = self.now
        differs = [name for name in type(before).model_fields if getattr(before, name) != getattr(wanted, name)]
        taken = {name: getattr(wanted, name) for name in differs if name in LIVE_FIELDS - kept}
        self.now = before.model_copy(update=taken)
        return {name: (getattr(before, name), value) for name, value in taken.items()}, [
            name for name in differs if name not in taken
        ]
