"""Message consistency in its readings, and the metric that watches for collapse; knows no codec and no teacher."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses.masks import pooled, real
from student_client.losses.states import state_error
from teaching_protocol.errors import InvalidSetting, InvalidTensor

__all__ = ["CONSISTENCY_READINGS", "batch_standardised", "contrastive", "message_consistency", "message_variance"]

CONSISTENCY_READINGS = ("contrastive", "batch_standardised", "cross", "layernorm_mse")
"""Readings of L_MC that `message_consistency` takes; the first is the default."""

_EPS = 1e-6


def message_consistency(
    first: tuple[torch.Tensor, torch.Tensor | None],
    second: tuple[torch.Tensor, torch.Tensor | None],
    *,
    reading: str = "contrastive",
    temperature: float = 0.1,
) -> torch.Tensor:
    """L_MC between two messages, each given as (message [batch, tokens, d_m], mask [batch, tokens] bool or None).

    Which two is the pairing, the caller's choice: Enc_g(H^g) and Enc_h(H^h) of the same input at one tap
    ("same_input"), or the question m_g and the answer m_h ("question_answer"). Readings:

    - contrastive: InfoNCE on pooled messages, see `contrastive`. Token counts may differ.
    - batch_standardised: see `batch_standardised`. Token counts may differ.
    - layernorm_mse: || LN(m_1) - LN(m_2) ||^2, mean over features and over tokens real in both. Its minimum
      includes constant messages: watch `message_variance`.
    - cross: the same error, on *states*: `first` a state decoded from the other side's message, Dec_g(Enc_h(H^h)),
      `second` the own state H^g. A constant message cannot reach it.

    Talking Models (arXiv 2310.03188) names L_MC; every reading is ours.

    Raises:
        InvalidSetting: an unknown reading, or a temperature that is not positive.
        InvalidTensor: messages whose shapes do not fit.
    """
    if reading == "contrastive":
        return contrastive(pooled(*first), pooled(*second), temperature=temperature)
    if reading == "batch_standardised":
        return batch_standardised(pooled(*first), pooled(*second))
    if reading in CONSISTENCY_READINGS:
        return state_error(first[0], second[0], _both(first[1], second[1]))
    raise InvalidSetting(
        f"consistency: received {reading!r}, expected one of {', '.join(CONSISTENCY_READINGS)}; choose one of them"
    )


def contrastive(first: torch.Tensor, second: torch.Tensor, *, temperature: float = 0.1) -> torch.Tensor:
    """Symmetric InfoNCE over the batch: each row's message must know its partner among all rows'.

    s_ij = cos(a_i, b_j) / temperature;  L = -(1 / 2B) sum_i (log softmax_j(s_ij)[i] + log softmax_j(s_ji)[i]).
    CPC, van den Oord et al. 2018 (arXiv 1807.03748) equation 4; symmetric as in CLIP (arXiv 2103.00020).
    A batch of one gives 0. A constant message costs log B, the most a guess costs.

    Args:
        first: a [batch, d_m].
        second: b [batch, d_m].
        temperature: divides the cosines; positive.

    Raises:
        InvalidTensor: the two differ in shape.
        InvalidSetting: a temperature that is not positive.
    """
    _check_rows(first, second)
    if temperature <= 0:
        raise InvalidSetting(f"temperature: received {temperature}, expected more than 0; 0.1 is the default")
    scores = functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T / temperature
    own = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


def batch_standardised(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Squared error of messages standardised over the batch, mean over features.

    With a, b of mean 0 and variance 1 over the batch, mean_b (a - b)^2 = 2 (1 - corr(a, b)). It is computed as
    the right side, so that a constant feature costs 2 and not 0 (ours; the diagonal of Barlow Twins, arXiv 2103.03230).
    A batch of one has no correlation and gives 0, still connected.

    Args:
        first: [batch, d_m].
        second: [batch, d_m].

    Raises:
        InvalidTensor: the two differ in shape.
    """
    _check_rows(first, second)
    if len(first) < 2:
        return (first.sum() + second.sum()) * 0.0
    a, b = first - first.mean(0), second - second.mean(0)
    scale = ((a * a).mean(0) + _EPS) * ((b * b).mean(0) + _EPS)
    return (2.0 - 2.0 * (a * b).mean(0) / scale.sqrt()).mean()


def message_variance(message: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Batch variance over mean square of messages, in [0, 1]: near 0 they are constant, that is, collapsed.

    sum_{b,t,f} (m_btf - mean_b m_btf)^2 / sum_{b,t,f} m_btf^2, over real tokens at positions that two rows have at
    least; 1 where there is none (a batch of one says nothing). A metric: no gradient. Ours: norms miss this
    collapse, since every message is LayerNormed. It serves the answers A too.

    Args:
        message: [batch, tokens, d_m].
        mask: [batch, tokens] bool.
    """
    message = message.detach().float()
    mask = torch.ones(message.shape[:2], dtype=torch.bool, device=message.device) if mask is None else mask
    mask = mask & (mask.sum(0) > 1)
    message = real(message, mask)
    mean = message.sum(0) / mask.sum(0).clamp(min=1)[:, None]  # [tokens, d_m]
    spread = (real(message - mean, mask) ** 2).sum()
    square = (message**2).sum()
    return torch.where(mask.any(), spread / square.clamp(min=torch.finfo(square.dtype).tiny), torch.ones_like(square))


def _both(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    if first.shape != second.shape:
        raise InvalidTensor(
            f"masks: received {list(first.shape)} and {list(second.shape)}, expected the same [batch, tokens]; "
            "pool both messages to the same message_tokens"
        )
    return first & second


def _check_rows(first: torch.Tensor, second: torch.Tensor) -> None:
    if first.dim() != 2 or first.shape != second.shape:
        raise InvalidTensor(
            f"messages: received {list(first.shape)} and {list(second.shape)}, expected the same [batch, message_width]"
            "; give both sides the session's message_width and the same rows"
        )
