"""DiverseDistill (arXiv 2402.14035): a question of its own to each teacher, the answers weighed for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from student_client.losses import (
    committee_error,
    message_variance,
    mixed,
    mixed_prediction,
    mixed_targets,
    task_loss,
)
from student_client.method_config import CommitteeConfig, MethodConfig
from student_client.methods.answer import add_answer_labels
from student_client.methods.augmenters import AnswerAugmenter, CommitteeShape, QuestionAugmenter
from student_client.methods.gate import MessageGate
from student_client.methods.importance import Importance, importance
from student_client.methods.method import Asking, Context, Seen, Terms
from student_client.methods.projection import masked_mean
from student_client.methods.served import has_head, require_head
from student_client.teachers.pausing import Pausing
from student_client.teachers.teachers import Member, Teachers
from student_models import States
from task_data import Batch
from teaching_protocol.errors import ConfigError

__all__ = ["Committee"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Asking:
    """What all questions about a batch are made of."""

    x: torch.Tensor  # the student's state at the entry tap [batch, d_g]
    keys: torch.Tensor | None  # k [batch, d_e]
    scores: torch.Tensor  # s [batch, teachers]
    gate: torch.Tensor | None  # [batch]


@dataclass(frozen=True)
class _Heard:
    """What came of them: who was asked about which rows [kept], and the ports answered, by place."""

    importance: Importance
    members: list[Member]
    rows: Mapping[int, torch.Tensor]
    questions: Mapping[int, Tensors]
    answers: Mapping[int, Tensors]


class Committee(Asking):
    """L = L_task + w sum_i alpha_i || H^g_u - z_i ||^2, z_i = AA_i(a_i), a_i what teacher i answers to its question q_i.

    All teachers are asked at once. Rows for which a teacher counts too little are not sent to it. What is the paper's
    and what is ours is said in docs/methods.md.
    """

    asks_all = True
    predicts_rows = True
    converses = True
    bears_missing = True
    calls: torch.Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config, settings = context.config, context.config.committee
        self.settings, self.teachers = settings, len(context.cards)
        _check(config, settings, self.teachers)
        self.task = context.student.task
        if settings.w_labels and not any(has_head(card, self.task) for card in context.cards):
            require_head(context.cards[0], self.task)
        shape = CommitteeShape(
            self.teachers,
            context.student.width,
            config.message_width,
            config.message_tokens,
            settings.embedding_width if settings.embedding else 0,
            config.codec_depth,
        )
        draw = torch.Generator().manual_seed(context.seed)
        self.asks = settings.question == "asked"
        self.question_augmenter = QuestionAugmenter(shape, settings.importance == "learned", self.asks, draw)
        self.answer_augmenter = AnswerAugmenter(shape, draw)
        self.gate = MessageGate(config, context.seed)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def is_active(self) -> bool:
        """Whether any term has a weight."""
        settings = self.settings
        return bool(settings.weight or settings.w_labels or self._labels or self.config.w_state_consistency)

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Pausing[Terms]:
        """The error to the answers, answer labels of their mixture, and the state consistency of those asked."""
        config, settings, terms = self.config, self.settings, Terms()
        self.calls += 1
        x = masked_mean(seen.lower)
        keys = self.question_augmenter.keys(x)
        scores = self.question_augmenter.scores(x, keys)
        asking = _Asking(x, keys, scores, self.gate(x) if self.asks else None)
        heard = yield from self._ask(asking, batch, teachers)
        answers, weights = self._read(heard, len(batch)), heard.importance.weights
        wanted = answers.detach() if config.detach_target else answers
        share = weights if settings.importance_from == "all" else weights.detach()
        error = committee_error(masked_mean(seen.upper), wanted, share, of_mixture=settings.target == "mixture")
        terms.add("committee", settings.weight, error)
        mixture = mixed(answers, weights)[:, None]  # [batch, 1, d_g]
        if self._labels:
            real = torch.ones(mixture.shape[:2], dtype=torch.bool, device=mixture.device)
            add_answer_labels(terms, config, seen, batch, States(mixture, real))
        if settings.w_labels:
            self._add_predictions(terms, seen, batch, heard)
        if config.w_state_consistency:
            returned = [found["state_consistency"] for found in heard.answers.values()]
            terms.add("state_consistency", config.w_state_consistency, torch.stack(returned).sum())
        terms.monitors["answer_variance"] = float(message_variance(mixture))
        self._watch(terms, heard, len(batch))
        return terms

    @property
    def _labels(self) -> bool:
        return self.settings.answer_labels and bool(self.config.w_answer_task or self.config.w_answer_labels)

    @property
    def _port(self) -> str:
        """Where the answer is read: of a teacher that was not asked, what it says of x by itself."""
        return "answer" if self.asks else "teacher_message.exit"

    def _ask(self, asking: _Asking, batch: Batch, teachers: Teachers) -> Pausing[_Heard]:
        """Asks every teacher that is there, at once; where one gets lost on the way, the others are asked anew."""
        tau = self.settings.tau if int(self.calls) > self.settings.filter_after else 0.0
        while True:
            members = teachers.present()
            share = importance(asking.scores, [member.place for member in members], tau)
            kept = {member.place: share.kept[:, member.place].nonzero().squeeze(1) for member in members}
            rows = {place: each for place, each in kept.items() if len(each)}
            questions = {place: self._question(teachers[place], each, asking, batch) for place, each in rows.items()}
            answers = yield from teachers.pausing_ask(
                {place: (inputs, self._outputs(teachers[place])) for place, inputs in questions.items()}
            )
            if answers.keys() == questions.keys():
                return _Heard(share, members, rows, questions, answers)

    def _outputs(self, member: Member) -> list[str]:
        """The output ports of one teacher's call."""
        outputs = [self._port, "state_consistency"] if self.config.w_state_consistency else [self._port]
        return [*outputs, "logits"] if self._predicts(member) else outputs

    def _predicts(self, member: Member) -> bool:
        """Whether a teacher's own prediction is wanted and is about the task."""
        return bool(self.settings.w_labels) and has_head(member.card, self.task)

    def _add_predictions(self, terms: Terms, seen: Seen, batch: Batch, heard: _Heard) -> None:
        """The teachers' own predictions, mixed by importance, as soft labels; the importance learns from the labels (ours)."""
        settings, count = self.settings, len(batch)
        said = {place: found["logits"] for place, found in heard.answers.items() if "logits" in found}
        if not said:
            return
        blank = heard.importance.weights.new_zeros(count, next(iter(said.values())).shape[-1])
        each = [
            blank.index_copy(0, heard.rows[place], said[place]) if place in said else blank
            for place in range(self.teachers)
        ]
        speaks = torch.tensor([place in said for place in range(self.teachers)], device=blank.device)
        weights = heard.importance.weights * speaks
        rows = (weights.sum(1) > 0).nonzero().squeeze(1)  # for some, nobody who predicts may have been asked
        predictions, weights = torch.stack(each, dim=1)[rows], weights[rows]
        share = weights / weights.sum(1, keepdim=True)
        soft_by, several = settings.temperature, seen.is_multi_label
        target = mixed_prediction(predictions, share, temperature=soft_by, independent=several)
        soft = mixed_targets(seen.outputs[rows], target, temperature=soft_by, independent=several)
        terms.add("committee_labels", settings.w_labels, soft)
        if settings.importance == "learned":
            mixture = mixed_prediction(predictions, share, independent=several)
            learned = task_loss(mixture, batch.labels[rows], batch.labelled[rows])
            terms.add("importance_task", settings.w_labels, learned)

    def _question(self, member: Member, rows: torch.Tensor, asking: _Asking, batch: Batch) -> dict[str, torch.Tensor]:
        """The input ports of one teacher's call: the rows it is asked about, and no others."""
        inputs: dict[str, torch.Tensor] = {}
        if self.asks:
            keys = None if asking.keys is None else asking.keys[rows]
            inputs["message"] = self.question_augmenter.question(member.place, asking.x[rows], keys)
            if asking.gate is not None:
                inputs["message_gate"] = asking.gate[rows]
        config = self.config
        joins = config.answer_from == "message_and_input" or config.inject != "replace"
        if joins or config.w_state_consistency or not self.asks or self._predicts(member):
            inputs |= {name: tensor[rows.to(tensor.device)] for name, tensor in member.own(batch).items()}
        return inputs

    def _read(self, heard: _Heard, count: int) -> torch.Tensor:
        """z [batch, teachers, d_g]; zeros where a teacher was not asked."""
        width = self.answer_augmenter.width
        weights = heard.importance.weights
        read = [weights.new_zeros(count, width)] * self.teachers
        for place, found in heard.answers.items():
            answer = self.answer_augmenter(place, found[self._port])
            read[place] = answer.new_zeros(count, width).index_copy(0, heard.rows[place], answer)
        return torch.stack([each.to(weights.dtype) for each in read], dim=1)

    def _watch(self, terms: Terms, heard: _Heard, count: int) -> None:
        """Monitors of who counts and who was asked; rows not sent are counted with the teachers."""
        saved = 0
        for member in heard.members:
            rows = len(heard.rows.get(member.place, ()))
            member.rows_saved += count - rows
            saved += count - rows
            terms.monitors[f"kept.{member.place}"] = rows / count
        for place, alpha in enumerate(heard.importance.learned.detach().mean(0).tolist()):
            terms.monitors[f"importance.{place}"] = alpha
        terms.monitors["teacher_rows_saved"] = saved / (count * len(heard.members))
        if self.asks:
            spread = [float(message_variance(each["message"])) for each in heard.questions.values()]
            terms.monitors["question_variance"] = min(spread)


def _check(config: MethodConfig, settings: CommitteeConfig, teachers: int) -> None:
    """Refuses what no committee can be made of.

    Raises:
        ConfigError: a threshold that may drop every teacher, messages of no fixed number of tokens, or no teacher.
    """
    if teachers < 1:
        raise ConfigError("committee: received no teacher, expected one or more; give their addresses")
    if settings.tau >= 1 / teachers:
        raise ConfigError(
            f"method.committee.tau: received {settings.tau:g}, a threshold that drops every teacher where all of the "
            f"{teachers} count the same; expected less than 1/{teachers} = {1 / teachers:.4g}, or 0, which drops none"
        )
    if config.message_tokens < 1:
        raise ConfigError(
            "method.message_tokens: received 0, expected 1 or more with the method committee, whose questions are made of "
            "one pooled state; 1 is the default"
        )
