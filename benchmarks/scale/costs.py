"""What things cost: measured here (`results/scale-calibration.json`), or, for a GPU, assumed in so many words; knows no event."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALIBRATION = Path(__file__).parent.parent / "results" / "scale-calibration.json"
KINDS = ("forward", "backward", "step")


@dataclass(frozen=True)
class Line:
    """Seconds of a batch: to start it, for each call in it, for each token."""

    start_s: float = 0.0
    call_s: float = 0.0
    token_s: float = 0.0

    def seconds(self, calls: int, tokens: int) -> float:
        return self.start_s + self.call_s * calls + self.token_s * tokens


@dataclass(frozen=True)
class Ends:
    """CPU seconds that a call costs beside the model, at the server and at the client: for the call, and for each byte either way."""

    server_call_s: float
    server_byte_s: float
    client_call_s: float
    client_byte_s: float

    def server_s(self, size_bytes: int) -> float:
        return self.server_call_s + self.server_byte_s * size_bytes

    def client_s(self, size_bytes: int) -> float:
        return self.client_call_s + self.client_byte_s * size_bytes


@dataclass(frozen=True)
class Engine:
    """How long a teacher's batches take, by kind of call.

    Attributes:
        team: batches on all threads at once.
        core: batches on one thread, beside others that have the rest; None where there is one batch at a time (any device but a processor).
        step: Steps, in a thread beside the model's.
        threads: compute threads of a processor; 0 is a device of its own, which takes no core but to start a batch.
        token_bytes: what a kept graph weighs for each token.
    """

    team: dict[str, Line]
    core: dict[str, Line] | None
    step: Line
    threads: int
    token_bytes: float

    @property
    def cores(self) -> int:
        """What batches share that run at the same time, as the server's engine has it."""
        return self.threads if self.core else 1

    def line(self, kind: str, cores: int) -> Line:
        """Of a batch on so many cores; between one and all, where nothing was measured, as if a team lost nothing by being smaller."""
        if self.core and cores == 1 < self.threads:
            return self.core[kind]
        team, times = self.team[kind], self.threads / cores if self.core else 1.0
        return Line(team.start_s, team.call_s * times, team.token_s * times)


@dataclass(frozen=True)
class Local:
    """CPU seconds of the student's own work in a step: up to its message, from the answer to its gradient, and after."""

    before_s: float
    middle_s: float
    after_s: float

    @property
    def seconds(self) -> float:
        return self.before_s + self.middle_s + self.after_s


@dataclass(frozen=True)
class Costs:
    """All of it. `ends` by how tensors travel: none, bf16, int8 over gRPC, or `shared` memory on one host (bf16).

    `wake_s` is what a call takes beyond all CPU time: threads that wait to be woken. `spread` is the deviation of the student's own
    times over their mean.
    """

    engine: Engine
    ends: dict[str, Ends]
    wake_s: float
    local: dict[str, Local]
    spread: float
    source: str


def measured(path: Path = CALIBRATION) -> Costs:
    """The calibration of `--calibrate`."""
    if not path.exists():
        raise SystemExit(f"{path} is missing; measure it with `benchmarks/simulate_scale.py --calibrate`")
    return from_figures(json.loads(path.read_text())["figures"]["costs"])


def from_figures(figures: dict[str, Any]) -> Costs:
    engine = figures["engine"]
    core = engine["core"] and {kind: Line(**line) for kind, line in engine["core"].items()}
    return Costs(
        Engine(
            {kind: Line(**line) for kind, line in engine["team"].items()},
            core,
            Line(**engine["step"]),
            engine["threads"],
            engine["token_bytes"],
        ),
        {way: Ends(**each) for way, each in figures["ends"].items()},
        figures["wake_s"],
        {name: Local(**each) for name, each in figures["local"].items()},
        figures["spread"],
        figures["source"],
    )


def to_figures(costs: Costs) -> dict[str, Any]:
    return dataclasses.asdict(costs)


@dataclass(frozen=True)
class AssumedGpu:
    """A GPU as ASSUMED, not measured: nobody has run this project's teacher on one for these numbers.

    Attributes:
        tflops: effective, of both passes; a third to a half of what a data sheet says is usual.
        launch_ms: what the host needs to launch one pass of the span, whatever is in it.
        parameters: of the span, in billions; a pass forward takes 2 operations a parameter and token, and so does a pass
            back to the inputs, as the weights are frozen.
        token_kib: a kept graph's size for each token.
        step_ms: a Step of one student's codec; `step_call_ms` each further one in the same batch.
    """

    tflops: float = 100.0
    launch_ms: float = 8.0
    parameters: float = 1.0
    token_kib: float = 600.0
    step_ms: float = 1.0
    step_call_ms: float = 0.1

    def engine(self) -> Engine:
        token_s = 2 * self.parameters * 1e9 / (self.tflops * 1e12)
        line = Line(self.launch_ms / 1e3, 0.0, token_s)
        step = Line(self.step_ms / 1e3, self.step_call_ms / 1e3)
        return Engine({"forward": line, "backward": line}, None, step, 0, self.token_kib * 1024)

    def costs(self, known: Costs) -> Costs:
        """These, with everything but the engine as it was measured on this machine's processor."""
        said = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(self).items())
        return dataclasses.replace(known, engine=self.engine(), source=f"an assumed GPU ({said}); calls as measured")
