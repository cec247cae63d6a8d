"""What is asked of the simulation and what it answers, as values; what a message weighs and a lonely step takes; knows no event."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from scale.costs import Costs
from teaching_protocol import verbs
from teaching_protocol.wire import write

CONTROL_BYTES = 400  # a Step's request or reply with HTTP/2's headers, about
FRAMES = 1.06  # bytes on Ethernet over bytes of TCP's payload, at 1500 a frame
_NEAR = 0.7
_FULL_WIRE = 0.5  # students whose calls share batches move in step: all send, then all receive


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        students: in all; replicas: teachers, each on a host of its own.
        local: which of the calibrated students: its own work in a step.
        gbps: of every host's network card; inf where all is on one host.
        delay_s: one way, of a packet.
        way: how tensors travel: none, bf16, int8, or `shared` on one host.
        rows, tokens, width: of a student's messages.
        host_students: students that share a host; each has a core.
        teacher_cores: of a teacher's host.
        one_host: all processes share one machine's `teacher_cores`; nothing travels where `gbps` is infinite, else each host is a
            network namespace with a card of its own.
        settings: of the teachers, fields of `ServerConfig`.
        warm_steps, steps: of each student on the average, before and while it is measured.
    """

    students: int
    replicas: int = 1
    local: str = "small"
    gbps: float = 10.0
    delay_s: float = 50e-6
    way: str = "bf16"
    rows: int = 8
    tokens: int = 64
    width: int = 384
    host_students: int = 8
    teacher_cores: float = 16
    one_host: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    warm_steps: int = 4
    steps: int = 6
    seed: int = 0

    @property
    def call_tokens(self) -> int:
        return self.rows * self.tokens


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario, in the window that was measured.

    Attributes:
        steps_s: optimizer steps a second of all students; tokens_s: of their messages.
        step_s, slow_step_s: a step's median and 95% quantile.
        wait_s: seconds a step's calls waited in the teacher's queue.
        students_a_batch: calls in a batch of Forwards or Backwards.
        busy: share of the time that each resource was at work; the busiest of its kind.
        mean_busy: the same, the mean over all of its kind.
        refused, recomputed: for each step.
    """

    steps_s: float
    tokens_s: float
    step_s: float
    slow_step_s: float
    wait_s: float
    students_a_batch: float
    busy: dict[str, float]
    mean_busy: dict[str, float]
    refused: float
    recomputed: float

    @property
    def bottleneck(self) -> str:
        """The resource that is nearest to being full; `round trip` where none is near."""
        full = {name: share / (_FULL_WIRE if name.endswith("wire") else 1.0) for name, share in self.busy.items()}
        name = max(full, key=lambda each: full[each])
        return name if full[name] > _NEAR else "round trip"


def rendezvous(student: str, replicas: int) -> int:
    """The replica a student is pinned to: the highest of the hashes of its name with each replica's."""
    return max(range(replicas), key=lambda each: hashlib.sha256(f"{student} {each}".encode()).digest())


@functools.cache
def message_bytes(rows: int, tokens: int, width: int, way: str) -> int:
    """What a message's call really takes, packed by the protocol's own packer."""
    generator = torch.Generator().manual_seed(0)
    message = torch.randn(rows, tokens, width, generator=generator)
    request = verbs.ForwardRequest(
        verbs.SessionRef("s" * 22, 1), "c" * 32, ("answer",), True, ("message",), {"message": message}
    )
    return len(write(request, {"shared": "bf16"}.get(way, way)))


def alone_s(scenario: Scenario, costs: Costs) -> float:
    """A step of one student that meets nobody, as the sum of its parts; without what varies."""
    local = costs.local[scenario.local]
    size = message_bytes(scenario.rows, scenario.tokens, scenario.width, scenario.way)
    ends, engine = costs.ends[scenario.way], costs.engine
    total = local.seconds + engine.step.seconds(1, 0)
    for each in (size, size, CONTROL_BYTES):
        total += ends.client_s(2 * each) + ends.server_s(2 * each) + costs.wake_s
        if math.isfinite(scenario.gbps):
            total += 2 * (each * FRAMES * 8 / (scenario.gbps * 1e9) + scenario.delay_s)
    for kind in ("forward", "backward"):
        line = engine.team[kind]
        token_s = line.call_s + line.token_s * scenario.call_tokens
        total += line.start_s + token_s if engine.threads else max(line.start_s, token_s)
    return total
