"""Errors between hidden states, masked means over features; knows no codec and no teacher."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses.masks import mean_over_tokens, real
from teaching_protocol.errors import InvalidTensor

__all__ = ["interact", "state_consistency", "state_error"]


def state_error(
    states: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None = None, *, normalise: bool = True
) -> torch.Tensor:
    """(1 / n d) sum over the n real tokens of || LN(states) - LN(other) ||^2; without `normalise`, of the raw ones.

    LN is a LayerNorm without parameters. With it the error neither grows with the states' scale nor falls
    by shrinking them (ours). Where no token is real it is 0, still connected.

    Args:
        states: [batch, tokens, d].
        other: [batch, tokens, d].
        mask: [batch, tokens] bool; None takes every token as real.

    Raises:
        InvalidTensor: the two differ in shape, or the mask does not fit them.
    """
    _check(states, other, mask)
    states, other = real(states, mask), real(other, mask)
    if normalise:
        states, other = (functional.layer_norm(each, each.shape[-1:]) for each in (states, other))
    return mean_over_tokens(((states - other) ** 2).mean(-1), mask)


def interact(
    states: torch.Tensor, answer: torch.Tensor, mask: torch.Tensor | None = None, *, normalise: bool = True
) -> torch.Tensor:
    """L_interact = || H^g_u - A ||^2, A = Dec_g(m_h) the answer as the student reads it.

    Talking Models (arXiv 2310.03188) by its abstract and reviews; the masked mean and the LayerNorm are ours.
    Gradients flow into both; detach A outside for a fixed target.

    Args:
        states: H^g_u [batch, tokens, d_g], pooled to the answer's tokens.
        answer: A [batch, tokens, d_g].
        mask: [batch, tokens] bool.
        normalise: compare LayerNormed states; False compares them raw.

    Raises:
        InvalidTensor: shapes that do not fit.
    """
    return state_error(states, answer, mask, normalise=normalise)


def state_consistency(
    states: torch.Tensor, restored: torch.Tensor, mask: torch.Tensor | None = None, *, normalise: bool = True
) -> torch.Tensor:
    """L_SC, student side, at one tap: || Dec_g(Enc_g(H^g)) - H^g ||^2.

    Talking Models (arXiv 2310.03188) names the loss; this form of it is ours.

    Args:
        states: H^g [batch, tokens, d_g].
        restored: Dec_g(Enc_g(H^g)) [batch, tokens, d_g].
        mask: [batch, tokens] bool.
        normalise: compare LayerNormed states; False compares them raw.

    Raises:
        InvalidTensor: shapes that do not fit.
    """
    return state_error(restored, states, mask, normalise=normalise)


def _check(states: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None) -> None:
    if states.dim() != 3 or states.shape != other.shape:
        raise InvalidTensor(
            f"states: received {list(states.shape)} and {list(other.shape)}, expected the same [batch, tokens, width]; "
            "pool both to the same message_tokens"
        )
    if mask is not None and (mask.shape != states.shape[:2] or mask.dtype != torch.bool):
        raise InvalidTensor(
            f"mask: received {list(mask.shape)} of {mask.dtype}, expected {list(states.shape[:2])} of torch.bool; "
            "pass the mask that belongs to the states"
        )
