"""What every teacher family can do: embed, run a span of blocks, finish, pool, give logits; knows no session and no codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from teacher_server.families.inputs import Inputs
from teacher_server.families.pooling import masked_mean
from teaching_protocol.errors import InvalidSetting, UnknownPort

__all__ = ["Family", "LayerSpan"]


@dataclass(frozen=True)
class LayerSpan:
    """The blocks `start` .. `stop - 1` of a teacher; cut `l` lies before block `l`, cut `layers` after the last.

    Raises:
        InvalidSetting: not 0 <= start <= stop.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise InvalidSetting(f"span {self.start}:{self.stop}, expected 0 <= entry <= exit; set entry and exit anew")

    def __len__(self) -> int:
        return self.stop - self.start


class Family(ABC):
    """One loaded model, cut at its blocks. Nothing in here switches gradients off.

    Hidden states are [batch, tokens, width] at every cut; a mask [batch, tokens] bool is True on real tokens.
    """

    modality: ClassVar[Literal["text", "image", "ratings"]] = "text"
    takes_padding: bool = True
    """Whether masked tokens behind a row change nothing before them, so that rows of other lengths may run beside it."""
    tokenizer: Any | None = None
    """What turns texts to ids: of transformers or of tokenizers; None where there is none."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The family's name on the teacher's card."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Width of the hidden states at every cut 0 .. layers."""

    @property
    @abstractmethod
    def heads(self) -> tuple[str, ...]:
        """The head that gives `logits`, as a tuple of one name or none."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The classes of a classification head in order; empty for any other teacher."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of the token table; 0 for a teacher that reads no text."""
        return 0

    @property
    def max_tokens(self) -> int | None:
        """The most tokens the teacher's own input may have; None where positions have no end."""
        return None

    @abstractmethod
    def build_inputs(self) -> Inputs:
        """What checks and prepares the teacher's own inputs."""

    @abstractmethod
    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The teacher's own states at cut 0, [batch, tokens, width], from its own inputs."""

    @abstractmethod
    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """Runs the blocks of `span` on the states [batch, tokens, width] at cut `span.start`; differentiable.

        The states may come from anywhere and have any number of tokens: token t stands at position t.

        Raises:
            InvalidTensor: states that this family cannot lay out (see the family).
        """

    def compile(self, backend: str) -> None:
        """Has torch.compile make kernels of the blocks; `run` uses them from then on, at any size.

        Raises:
            InvalidSetting: a family whose blocks are not compiled.
        """
        raise InvalidSetting(f"compile: the layers of a {self.name} are small and are not compiled; leave compile away")

    def run_again(self) -> None:
        """Has each block run again in backward, so that a graph holds none of the weights; for weights that come and go.

        Raises:
            InvalidSetting: a family whose weights stay where they are.
        """
        raise InvalidSetting(f"device_map: a {self.name} is small and lies on one device; leave device_map away")

    def finish(self, states: torch.Tensor) -> torch.Tensor:
        """From the states at the last cut to the base model's `last_hidden_state`, [batch, tokens, width]."""
        return states

    def say(self, finished: torch.Tensor) -> torch.Tensor:
        """What a language model's head makes of finished states: [..., width] to [..., vocabulary].

        Raises:
            UnknownPort: a teacher without such a head.
        """
        raise UnknownPort(f"a {self.name} is no causal language model; ask for `pooled` or `hidden.<layer>`")

    @property
    def language_head(self) -> torch.Tensor | None:
        """The weights [vocabulary, width] of `say`, where it is nothing but them and the teacher holds them; else None."""
        return None

    def pool(self, finished: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """One vector a row, [batch, width], from finished states: the mean over real tokens, unless the family says."""
        return masked_mean(finished, mask)

    def own_mask(self, inputs: Mapping[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """The mask [batch, tokens] bool of the teacher's own `states`, embedded from `inputs`.

        That is the attention mask, or all ones where there is none.
        """
        mask = inputs.get("attention_mask")
        if mask is None:
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return mask.to(states.device, torch.bool)

    def climb(self, inputs: Mapping[str, torch.Tensor], cuts: Sequence[int]) -> dict[int, torch.Tensor]:
        """The teacher's own states at these cuts; blocks are run only as far as needed."""
        found: dict[int, torch.Tensor] = {}
        if not cuts:
            return found
        states, position = self.embed(inputs), 0
        mask = self.own_mask(inputs, states) if "attention_mask" in inputs else None
        for cut in sorted(set(cuts)):
            states = self.run(states, mask, LayerSpan(position, cut))
            found[cut], position = states, cut
        return found

    @abstractmethod
    def logits(
        self, inputs: Mapping[str, torch.Tensor], cuts: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """What the head says of the teacher's own inputs, and the states at these cuts on the way there."""
