"""What has changed a session since its state was last taken, to be told to one that takes its place; knows no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

__all__ = ["Gathered", "Sent", "Stepped"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Gathered:
    """A Backward with the Forward it belongs to: all that the gradients of the teacher-side codec depend on."""

    outputs: tuple[str, ...]
    grad_inputs: tuple[str, ...]
    inputs: Tensors
    grads: Tensors

    @property
    def size_bytes(self) -> int:
        """What it holds."""
        return sum(tensor.nbytes for tensors in (self.inputs, self.grads) for tensor in tensors.values())


@dataclass(frozen=True)
class Stepped:
    """A Step."""

    lr: float
    grad_scale: float
    max_grad_norm: float


@dataclass
class Sent:
    """The calls since `clear`, in their order, and the bytes that they hold."""

    calls: list[Gathered | Stepped] = field(default_factory=list)
    size_bytes: int = 0

    def gathered(self, outputs: tuple[str, ...], grad_inputs: tuple[str, ...], inputs: Tensors, grads: Tensors) -> None:
        """Notes a Backward that was answered; tensors are kept in the processor's memory."""
        call = Gathered(outputs, grad_inputs, _kept(inputs), _kept(grads))
        self.calls.append(call)
        self.size_bytes += call.size_bytes

    def stepped(self, lr: float, grad_scale: float, max_grad_norm: float) -> None:
        """Notes a Step that was answered."""
        self.calls.append(Stepped(lr, grad_scale, max_grad_norm))

    def clear(self) -> None:
        """The state has been taken: what led to it need not be told again."""
        self.calls, self.size_bytes = [], 0


def _kept(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
