"""Forward and Backward of one call as autograd sees them; knows no lease and no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from student_client.session import Session
from teaching_protocol.verbs import has_gradient

__all__ = ["exchange", "placed"]

Tensors = Mapping[str, torch.Tensor]


def exchange(
    session: Session, anchor: torch.Tensor, inputs: Tensors, outputs: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Output ports for input ports, differentiable to the float message inputs and the teacher's codec.

    Args:
        session: enrolled.
        anchor: a scalar that requires a gradient, so that Backward reaches the teacher's codec even when nothing
            that was sent requires one.
        inputs: input ports; the outputs come back on the device of the first.
        outputs: names of output ports.
    """
    follows = torch.is_grad_enabled() and any(map(has_gradient, outputs))
    call = _Call(session, tuple(inputs), tuple(outputs), follows)
    found = _Exchange.apply(call, anchor, *inputs.values())  # type: ignore[no-untyped-call]
    return dict(zip(outputs, found, strict=True))


@dataclass
class _Call:
    """One Forward and what its Backward needs."""

    session: Session
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    backward_follows: bool
    grad_inputs: tuple[str, ...] = ()
    id: str = ""

    def forward(self, values: Sequence[torch.Tensor], wanted: Sequence[bool]) -> list[torch.Tensor]:
        """Sends the Forward; gives the outputs, float32 where they are floats."""
        wants = zip(self.names, wanted, strict=True)
        self.grad_inputs = tuple(name for name, grad in wants if grad and self.backward_follows)
        inputs = dict(zip(self.names, values, strict=True))
        self.id, found = self.session.forward(inputs, self.outputs, self.backward_follows, self.grad_inputs)
        return [placed(found[name], values[0].device) for name in self.outputs]

    def backward(self, grads: Sequence[torch.Tensor | None], values: Sequence[torch.Tensor]) -> Tensors:
        """Sends the Backward of the outputs that have a gradient."""
        given = {name: grad for name, grad in zip(self.outputs, grads, strict=True) if grad is not None}
        inputs = dict(zip(self.names, values, strict=True))
        again = {"outputs": self.outputs, "grad_inputs": self.grad_inputs, "inputs": inputs}
        return self.session.backward(self.id, given, again)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, anchor: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = call.forward(values, ctx.needs_input_grad[2:])
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*values)
        constant = [value for name, value in zip(call.outputs, outputs, strict=True) if not has_gradient(name)]
        ctx.mark_non_differentiable(*constant)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        values = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return (None, None, *(None for _ in values))
        found = ctx.call.backward(grads, values)
        return (None, None, *(_gradient(found, *given) for given in zip(ctx.call.names, values, strict=True)))


def _gradient(found: Tensors, name: str, value: torch.Tensor) -> torch.Tensor | None:
    return placed(found[name], value.device).to(value.dtype) if name in found else None


def placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A received tensor in memory of our own (received memory is read-only), floats as float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
