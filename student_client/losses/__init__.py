"""Losses as pure functions of tensors; no model, no state, no input or output."""

from __future__ import annotations

from student_client.losses.labels import answer_labels, soft_label_kl
from student_client.losses.messages import (
    CONSISTENCY_READINGS,
    batch_standardised,
    contrastive,
    message_consistency,
    message_variance,
)
from student_client.losses.states import interact, state_consistency, state_error
from student_client.losses.task import masked_cross_entropy, masked_mse, task_loss

__all__ = [
    "CONSISTENCY_READINGS",
    "answer_labels",
    "batch_standardised",
    "contrastive",
    "interact",
    "masked_cross_entropy",
    "masked_mse",
    "message_consistency",
    "message_variance",
    "soft_label_kl",
    "state_consistency",
    "state_error",
    "task_loss",
]
