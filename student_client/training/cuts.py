"""One consistent cut of both sides, taken between two steps, put back; knows no file and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from student_client.reporting.progress import Means
from student_client.training.acceleration import random_state, set_random_state
from student_client.training.checkpoints import Checkpoint
from student_client.training.steps import Steps
from student_client.training.stream import Place
from teaching_protocol.errors import StateMismatch

__all__ = ["Cuts", "Mark"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Mark:
    """What a step moves before its optimizers do: with it, a step that failed so early leaves the cut before it whole.

    Attributes:
        step: steps done.
        place: in the data.
        random: state of the generators.
        buffers: those of student and method, such as running means and counters.
        means: sums of what is to be written next, by name.
    """

    step: int
    place: Place
    random: Tensors
    buffers: Mapping[str, Tensors]
    means: Mapping[str, tuple[torch.Tensor | float, int]]


class Cuts:
    """Takes a run's cuts and puts them back.

    Args:
        steps: student, method, optimizers and batches of the run.
        means: of what was seen since the last record.
        identity: what a resumed run must share (`RunConfig.identity`).
    """

    def __init__(self, steps: Steps, means: Means, identity: Mapping[str, Any]) -> None:
        self._steps, self._means, self._identity = steps, means, identity
        self._modules: Mapping[str, nn.Module] = {"student": steps.student, "method": steps.method}

    def mark(self, step: int) -> Mark:
        """Notes what the next step moves before its optimizers do."""
        buffers = {
            group: {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
            for group, module in self._modules.items()
        }
        return Mark(step, self._steps.batches.place, random_state(), buffers, self._means.sums())

    def take(self, mark: Mark, facts: Mapping[str, Any], sessions: tuple[bytes, ...]) -> Checkpoint:
        """The cut at a mark, while no optimizer has moved since. Its tensors are those at work: hold it, or write it.

        Args:
            mark: where both sides stand.
            facts: what else belongs to the cut, JSON values.
            sessions: the state of each teacher's session at the same step.
        """
        tensors: dict[str, Tensors] = {
            group: {name: mark.buffers[group].get(name, value) for name, value in module.state_dict().items()}
            for group, module in self._modules.items()
        }
        optimizer = self._steps.optimizer
        tensors |= {"optimizer": optimizer.tensors(), "random": mark.random}
        means = {name: [float(total), count] for name, (total, count) in mark.means.items()}
        facts = {**facts, "place": asdict(mark.place), "means": means, **optimizer.facts()}
        return Checkpoint(mark.step, self._identity, facts, tensors, sessions)

    def put_back(self, cut: Checkpoint) -> None:
        """Puts the student's side where a cut has it; what the cut holds stays as it is.

        Raises:
            StateMismatch: it is one of another run.
        """
        try:
            for group, module in self._modules.items():
                module.load_state_dict(cut.tensors[group])
            self._steps.let_go()
            self._steps.optimizer.load(cut.tensors["optimizer"], cut.facts)
            self._steps.batches.go_to(Place(**cut.facts["place"]))
            self._means.put_back(cut.facts.get("means", {}))
            set_random_state(cut.tensors["random"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise StateMismatch(f"the checkpoint of step {cut.step} does not fit this run: {error}") from error
