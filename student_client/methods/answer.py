"""What a student learns from an answer A in its own space; the same for one-way and talking."""

from __future__ import annotations

import torch
from torch.nn import functional

from student_client.losses import answer_labels, interact, message_variance, task_loss
from student_client.method_config import MethodConfig
from student_client.methods.method import Seen, Terms
from student_models import States
from task_data import Batch

__all__ = ["add_answer_labels", "add_answer_terms"]


def add_answer_terms(
    terms: Terms, config: MethodConfig, seen: Seen, batch: Batch, target: States, answer: torch.Tensor
) -> None:
    """Adds L_interact = || H^g_u - A ||^2 (Talking Models) and the two answer-label terms.

    Args:
        target: H^g_u pooled to the answer's tokens.
        answer: A [batch, tokens, d_g].
    """
    wanted = answer.detach() if config.detach_target else answer
    terms.add("interact", config.w_interact, interact(target.hidden, wanted, target.mask))
    terms.monitors["answer_variance"] = float(message_variance(answer, target.mask))
    add_answer_labels(terms, config, seen, batch, States(answer, target.mask))


def add_answer_labels(terms: Terms, config: MethodConfig, seen: Seen, batch: Batch, answer: States) -> None:
    """Adds the two answer-label terms (ours): what the student's head makes of an answer A [batch, tokens, d_g].

    y_A = g_out(A) learns the labels where there are any, and teaches y on all rows by KL(detach(y_A) || y).
    """
    if not (config.w_answer_task or config.w_answer_labels):
        return
    read = functional.dropout(answer.hidden, config.answer_dropout, seen.student.training)
    learner = seen.student.head(States(read, answer.mask))
    terms.add("answer_task", config.w_answer_task, task_loss(learner, batch.labels, batch.labelled))
    with torch.no_grad():
        label = seen.student.head(answer)  # y_A, the answer as it is
    soft = answer_labels(seen.outputs, label, temperature=config.label_temperature, independent=seen.is_multi_label)
    terms.add("answer_labels", config.w_answer_labels, soft)
