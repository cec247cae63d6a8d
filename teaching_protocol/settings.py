"""What the verbs speak of besides tensors: which session, a server's limits, a session's settings; knows no verb."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Limits", "OptimizerSettings", "SessionRef", "SessionSettings"]


@dataclass(frozen=True)
class SessionRef:
    """Which session a call belongs to; `epoch` is its fencing number. Its `repr` shows no id, which opens the session."""

    session_id: str = field(default="", repr=False)
    epoch: int = 0


@dataclass(frozen=True)
class Limits:
    """What a server accepts: bytes of a request, rows, tokens of a row, widths, seconds, ranks of a session."""

    message_bytes: int = 256 * 2**20
    rows: int = 1024
    tokens: int = 512
    message_width: int = 4096
    codec_depth: int = 8
    lease_s: float = 60.0
    ranks: int = 16


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of a session's codec; the learning rate comes with each Step."""

    name: str = "adamw"
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0


@dataclass(frozen=True)
class SessionSettings:
    """What one student's session is: the shape of its messages, the span, the codec, the seed.

    `message_tokens` 0 leaves as many tokens as the student sends; otherwise the teacher's own
    states are pooled to that number by `pooling` (mean | cls | attention). `world_size` processes share the session; 0 is 1, of
    a client that knows no other number.
    """

    task: str = ""
    message_width: int = 128
    message_tokens: int = 0
    pooling: str = "mean"
    entry: int = 0
    exit: int = 0
    codec_depth: int = 2
    answer_from: str = "message"
    inject: str = "replace"
    optimizer: OptimizerSettings = OptimizerSettings()
    seed: int = 0
    world_size: int = 1
