"""The selector: from how student and teacher see a batch to a weight for each kind of knowledge; knows no loss."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional

from teaching_protocol.errors import ConfigError

__all__ = ["VERSION", "Selector", "SelectorCard", "hardened"]

VERSION = 1
"""Version of the layout on disk."""

_CARD, _WEIGHTS = "selector.json", "selector.safetensors"
_NEAR_HALF = 0.1  # factor on the actor's last weights: a new selector prefers nothing


@dataclass(frozen=True)
class SelectorCard:
    """What a selector is for, and its shape.

    Attributes:
        kinds: the K kinds of knowledge, in the order of the weights.
        student_width: d_g of the students it can look at.
        teacher_width: width of the teacher's port `pooled`.
        is_hard: whether its weights are 0 or 1, and not anything between.
        threshold: from which on a hard weight is 1.
        state_width: width of what each side's vector becomes in the state.
        hidden_width: of all MLPs.
    """

    kinds: tuple[str, ...]
    student_width: int
    teacher_width: int
    is_hard: bool = False
    threshold: float = 0.5
    state_width: int = 32
    hidden_width: int = 64


class Selector(nn.Module):
    """State, actor and critic (arXiv 2302.00444).

    Student's and teacher's last-layer vectors each go through a 2-layer MLP, are averaged over the batch and joined to
    the state s. Actor mu: a 3-layer MLP and a sigmoid, K weights. Critic Q: a 3-layer MLP on [s; a]. Ours: the vectors
    are LayerNormed first, activations are ReLU, and a new actor's weights lie near 0.5.

    Args:
        card: its shape.
        seed: of the initial weights. The global random state is neither read nor moved.
    """

    def __init__(self, card: SelectorCard, seed: int = 0) -> None:
        super().__init__()
        self.card = card
        count, state, hidden = len(card.kinds), card.state_width, card.hidden_width
        with torch.device("meta"):
            self.student_state = _mlp(card.student_width, hidden, state)
            self.teacher_state = _mlp(card.teacher_width, hidden, state)
            self.actor = _mlp(2 * state, hidden, hidden, count)
            self.critic = _mlp(2 * state + count, hidden, hidden, 1)
        self.to_empty(device="cpu")
        _draw(self, torch.Generator().manual_seed(seed))

    def state(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """s [2 state_width] of one batch.

        Args:
            student: the student's last-layer vectors [batch, d_g].
            teacher: the teacher's `pooled` [batch, d_h].

        Raises:
            ConfigError: vectors of another width than the selector was trained on.
        """
        self.check_width("student", student.shape[-1])
        self.check_width("teacher", teacher.shape[-1])
        return self.states([(student, teacher)])[0]

    def states(self, looks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """s [looks, 2 state_width] of many batches at once; each a pair as `state` takes it."""
        rows = [len(student) for student, _ in looks]
        sides = zip((self.student_state, self.teacher_state), zip(*looks, strict=True), strict=True)
        seen = [net(functional.layer_norm(torch.cat(each), each[0].shape[-1:])).split(rows) for net, each in sides]
        return torch.stack([torch.cat([ours.mean(0), theirs.mean(0)]) for ours, theirs in zip(*seen, strict=True)])

    def act(self, state: torch.Tensor) -> torch.Tensor:
        """mu(s): states [..., 2 state_width] -> soft weights [..., K] in [0, 1]."""
        weights: torch.Tensor = torch.sigmoid(self.actor(state))
        return weights

    def value(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Q(s, a): states [..., 2 state_width] and weights [..., K] -> [...]."""
        value: torch.Tensor = self.critic(torch.cat([state, action], dim=-1)).squeeze(-1)
        return value

    def settle(self, soft: torch.Tensor) -> torch.Tensor:
        """The action itself: soft weights [..., K] as they are, or hardened."""
        return hardened(soft, self.card.threshold) if self.card.is_hard else soft

    @torch.no_grad()
    def choose(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The action [K] on one batch, without noise; arguments as of `state`."""
        return self.settle(self.act(self.state(student, teacher)))

    def check_width(self, side: str, width: int) -> None:
        """Refuses vectors of another width than the selector was trained on.

        Raises:
            ConfigError: with both widths and what to do.
        """
        wanted = self.card.student_width if side == "student" else self.card.teacher_width
        if width != wanted:
            remedy = "train a student of that width" if side == "student" else "ask a teacher of that width"
            raise ConfigError(
                f"method.selection.selector: it looks at {side}s of width {wanted}, received one of width {width}, and "
                f"serves students and teachers of its own widths only; {remedy}, or make another selector by "
                "`student-client select`"
            )

    def check_kinds(self, kinds: Sequence[str]) -> None:
        """Refuses other kinds than the selector weighs.

        Raises:
            ConfigError: with both and what to do.
        """
        if tuple(kinds) != self.card.kinds:
            known = ",".join(self.card.kinds)
            raise ConfigError(
                f"method.selection.kinds: received {','.join(kinds)}, expected {known}, which the selector weighs; set "
                f"method.selection.kinds={known}, or make another selector by `student-client select`"
            )

    def save(self, folder: Path) -> None:
        """Writes selector.json and selector.safetensors to a folder; each takes the place of an old one whole.

        Raises:
            ConfigError: the folder cannot be written.
        """
        card = json.dumps({"version": VERSION, **asdict(self.card)}, indent=2)
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in ((_WEIGHTS, weights), (_CARD, f"{card}\n".encode())):
                draft = folder / f".{name}"
                draft.write_bytes(content)
                draft.replace(folder / name)
        except OSError as error:
            raise ConfigError(f"the selector {folder} cannot be written: {error}; give another folder") from error

    @classmethod
    def load(cls, folder: Path) -> Selector:
        """Reads what `save` wrote; frozen, in evaluation mode.

        Raises:
            ConfigError: the folder holds no selector, a damaged one, or one of another version.
        """
        try:
            card: dict[str, Any] = json.loads((folder / _CARD).read_text(encoding="utf-8"))
            version = card.pop("version")
            if version != VERSION:
                raise ConfigError(
                    f"{folder} holds a selector of version {version}, this release reads version {VERSION}; make it "
                    "anew by `student-client select`"
                )
            selector = cls(SelectorCard(**card | {"kinds": tuple(card["kinds"])}))
            selector.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"{folder} holds no selector that can be read ({error}); make one by "
                "`student-client select --output FOLDER` and give that folder"
            ) from error
        return selector.requires_grad_(False).eval()


def hardened(soft: torch.Tensor, threshold: float) -> torch.Tensor:
    """Soft weights [..., K] to {0, 1}: 1 from the threshold on, and always for the largest.

    The gradient passes straight through (Bengio et al. 2013, arXiv 1308.3432). That the largest is always chosen, so
    that no step teaches nothing, is ours.
    """
    chosen = (soft >= threshold) | (soft >= soft.amax(-1, keepdim=True))
    return chosen.to(soft.dtype) + (soft - soft.detach())


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _draw(selector: Selector, generator: torch.Generator) -> None:
    """PyTorch's own initial weights, from this generator; the actor's last layer smaller."""
    for module in selector.modules():
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for parameter in (module.weight, module.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    with torch.no_grad():
        for parameter in selector.actor[-1].parameters():
            parameter.mul_(_NEAR_HALF)
