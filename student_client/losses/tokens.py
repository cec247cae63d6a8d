"""Losses of predictions for tokens, a piece of the positions at a time where vocabularies are large; knows no model.

A token whose label is `IGNORED` is in none of them. Means are over tokens, not over rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from task_data import IGNORED
from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["shared_head_kl", "token_cross_entropy", "token_kl", "top_kl"]

_PIECE_NUMBERS = 2**22
"""Numbers of a piece [positions, classes]: some 16 MB of float32."""

_PerToken = Callable[..., torch.Tensor]
"""From pieces of tensors, positions first, to a loss for each position."""


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, mean over the tokens with a label in the labelled rows; 0, still connected, where there is none.

    Args:
        logits: y [batch, tokens, classes].
        labels: [batch, tokens] int64, `IGNORED` where there is none; what stands in an unlabelled row is not read.
        labelled: [batch] bool.
    """
    known = (labels != IGNORED) & labelled[:, None]
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.masked_fill(~known, 0).flatten(), reduction="none")
    return losses.masked_fill(~known.flatten(), 0.0).sum() / known.sum().clamp(min=1)


def token_kl(
    logits: torch.Tensor, teacher_logits: torch.Tensor, mask: torch.Tensor, *, temperature: float = 2.0
) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the tokens of `mask`.

    Hinton et al. 2015 (arXiv 1503.02531) section 2, token by token.

    Args:
        logits: the student's [batch, tokens, classes].
        teacher_logits: the teacher's, of the same tokens; no gradient goes there.
        mask: [batch, tokens] bool.
        temperature: T, positive.

    Raises:
        InvalidTensor: the two differ in shape.
        InvalidSetting: a temperature that is not positive.
    """
    _same(logits, teacher_logits)
    return _mean(lambda ours, theirs: _kl(_soft(theirs, temperature), _soft(ours, temperature)), mask, temperature)(
        logits, teacher_logits.detach()
    )


def top_kl(
    logits: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    places: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """T^2 KL over k + 1 classes: the teacher's k likeliest tokens, and all others as one; mean over the tokens of `mask`.

    Both sides' probabilities are exact; what is left out is how the rest is spread within itself. By the log sum
    inequality it is at most the KL over all tokens, grows with k, and is equal to it where k = vocabulary - 1.

    Args:
        logits: the student's [batch, tokens, vocabulary].
        teacher_logprobs: [batch, tokens, k + 1], log-probabilities at this temperature, that of the rest last; rounding on
            the wire is taken out.
        places: which tokens the k are, [batch, tokens, k] int.
        mask: [batch, tokens] bool.
        temperature: T, positive.

    Raises:
        InvalidTensor: shapes that do not fit.
        InvalidSetting: a temperature that is not positive.
    """
    if teacher_logprobs.shape[:2] != logits.shape[:2] or places.shape[-1] + 1 != teacher_logprobs.shape[-1]:
        raise InvalidTensor(
            f"teacher_logprobs: received {list(teacher_logprobs.shape)} with places {list(places.shape)} for logits "
            f"{list(logits.shape)}, expected [batch, tokens, k + 1] and [batch, tokens, k]; ask about the student's own tokens"
        )

    def divergence(ours: torch.Tensor, theirs: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        ours = _soft(ours, temperature)
        rest = ours.scatter(-1, at, -torch.inf).logsumexp(-1, keepdim=True)
        return _kl(theirs.log_softmax(-1), torch.cat([ours.gather(-1, at), rest], dim=-1))

    return _mean(divergence, mask, temperature)(logits, teacher_logprobs.detach().float(), places.long())


def shared_head_kl(
    logits: torch.Tensor, hidden: torch.Tensor, head: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """T^2 KL(softmax(H W / T) || softmax(student / T)) over the whole vocabulary; mean over the tokens of `mask`.

    The teacher's logits are made here of its last hidden states H and its head W, which the student's side holds, so
    that [tokens, width] travels and not [tokens, vocabulary].

    Args:
        logits: the student's [batch, tokens, vocabulary].
        hidden: H [batch, tokens, width], behind the teacher's last norm; no gradient goes there.
        head: W [vocabulary, width], frozen.
        mask: [batch, tokens] bool.
        temperature: T, positive.

    Raises:
        InvalidTensor: shapes that do not fit.
        InvalidSetting: a temperature that is not positive.
    """
    if hidden.shape[:2] != logits.shape[:2] or (logits.shape[-1], hidden.shape[-1]) != tuple(head.shape):
        raise InvalidTensor(
            f"hidden: received {list(hidden.shape)} and a head {list(head.shape)} for logits {list(logits.shape)}, expected "
            "[batch, tokens, width] and [vocabulary, width]; hold the head of the teacher that serves"
        )

    def divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(head.device.type, enabled=False):  # the teacher's logits are not rounded anew
            return _kl(_soft(functional.linear(theirs, head), temperature), _soft(ours, temperature))

    return _mean(divergence, mask, temperature)(logits, hidden.detach().to(head.dtype))


def _mean(per_token: _PerToken, mask: torch.Tensor, temperature: float) -> Callable[..., torch.Tensor]:
    """The mean of a loss of logits and other tensors over the tokens of a mask.

    What a piece makes on its way is made again in backward, and not kept.
    """
    if temperature <= 0:
        raise InvalidSetting(f"temperature: received {temperature}, expected more than 0; 1 is usual for tokens")

    def mean(*tensors: torch.Tensor) -> torch.Tensor:
        positions = max(1, _PIECE_NUMBERS // tensors[0].shape[-1])
        pieces = zip(*(torch.split(each.flatten(0, 1), positions) for each in (mask, *tensors)), strict=True)
        total = tensors[0].new_zeros((), dtype=torch.float32)
        for counted, *piece in pieces:
            losses = checkpoint(per_token, *piece, use_reentrant=False, preserve_rng_state=False)
            total = total + losses.masked_fill(~counted, 0.0).sum()
        return total * temperature**2 / mask.sum().clamp(min=1)

    return mean


def _soft(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities at a temperature, in float32 or better."""
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return (precise / temperature).log_softmax(-1)


def _kl(target: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL of log-probabilities, for each row of the last dimension."""
    return functional.kl_div(ours, target, reduction="none", log_target=True).sum(-1)


def _same(logits: torch.Tensor, others: torch.Tensor) -> None:
    if logits.shape != others.shape:
        raise InvalidTensor(
            f"outputs: received {list(logits.shape)} against {list(others.shape)}, expected the same [batch, tokens, classes]; "
            "the two must predict the same labels for the same tokens"
        )
