"""Losses as pure functions of tensors; no model, no state, no input or output."""

from __future__ import annotations

from student_client.losses.committee import committee_error, mixed, mixed_prediction, mixed_targets
from student_client.losses.features import hint_error, patient_error
from student_client.losses.fsp import flow_error, flow_matrix
from student_client.losses.labels import (
    answer_labels,
    averaged_soft_targets,
    of_independent,
    soft_label_kl,
    soft_targets,
)
from student_client.losses.messages import (
    CONSISTENCY_READINGS,
    batch_standardised,
    contrastive,
    message_consistency,
    message_variance,
)
from student_client.losses.relations import angle_relation, distance_relation, self_relation_kl
from student_client.losses.states import interact, state_consistency, state_error
from student_client.losses.task import (
    calibrated_cross_entropy,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_mse,
    task_loss,
)
from student_client.losses.tokens import shared_head_kl, token_cross_entropy, token_kl, top_kl

__all__ = [
    "CONSISTENCY_READINGS",
    "angle_relation",
    "answer_labels",
    "averaged_soft_targets",
    "batch_standardised",
    "calibrated_cross_entropy",
    "committee_error",
    "contrastive",
    "distance_relation",
    "flow_error",
    "flow_matrix",
    "hint_error",
    "interact",
    "masked_binary_cross_entropy",
    "masked_cross_entropy",
    "masked_mse",
    "message_consistency",
    "message_variance",
    "mixed",
    "mixed_prediction",
    "mixed_targets",
    "of_independent",
    "patient_error",
    "self_relation_kl",
    "shared_head_kl",
    "soft_label_kl",
    "soft_targets",
    "state_consistency",
    "state_error",
    "task_loss",
    "token_cross_entropy",
    "token_kl",
    "top_kl",
]
