"""Talking Models (arXiv 2310.03188): the student asks in messages, the teacher answers in kind."""

from __future__ import annotations

import torch

from student_client.codecs import CodecShape, StudentCodec
from student_client.losses import message_consistency, message_variance, state_consistency
from student_client.method_config import MethodConfig
from student_client.methods.answer import add_answer_terms
from student_client.methods.gate import MessageGate
from student_client.methods.method import Asking, Context, Seen, Terms
from student_client.methods.served import require_tokenizer
from student_client.teachers.pausing import Pausing
from student_client.teachers.teachers import Teachers
from student_models import States
from task_data import Batch, Task

__all__ = ["Talking"]


class Talking(Asking):
    """L = L_task + w1 L_interact + w2 L_MC + w3 L_SC, in `rounds` exchanges.

    m_g = Enc_g(H^g_l), S_l = Dec_h(m_g), S_u = h_up(S_l), m_h = Enc_h(S_u), A = Dec_g(m_h). What the
    teacher does of it happens on the server; its gradients come back over the same call. What is our
    reconstruction and what the paper's is said in docs/methods.md.
    """

    converses = True

    @classmethod
    def unsuited(cls, config: MethodConfig, task: Task) -> str:
        """What is read in an answer must be there: a token's label in its own token, and never what comes next."""
        if task.level == "row" or not (config.w_answer_task or config.w_answer_labels):
            return ""
        if task.level == "next_token":
            return (
                "which predicts what comes next: an answer about the text has seen that; set method.w_answer_task and "
                "method.w_answer_labels to 0"
            )
        if config.message_tokens:
            return (
                f"whose labels are those of tokens: an answer of {config.message_tokens} tokens is about the whole row; set "
                "method.message_tokens to 0, one for each token of the student, or w_answer_task and w_answer_labels to 0"
            )
        return ""

    @classmethod
    def compares_tokens(cls, config: MethodConfig, task: Task) -> bool:
        """Where a message has as many tokens as the student and the teacher's own state joins in, those must be as many."""
        return task.level != "row" and config.message_tokens == 0 and config.asks_about_input

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config, width = context.config, context.student.width
        shape = CodecShape(width, config.message_width, config.message_tokens, config.pooling, config.codec_depth)
        if self.compares_tokens(config, context.student.task):
            require_tokenizer(context.cards[0], context.student)
        self.codec = StudentCodec(shape, context.seed)
        self.gate = MessageGate(config, context.seed)

    @property
    def is_active(self) -> bool:
        """Whether any term of the conversation has a weight."""
        return self.config.is_active

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Pausing[Terms]:
        """All rounds of the conversation on one batch; the terms are their mean over rounds."""
        config, total = self.config, Terms()
        lower, upper = self.codec.pool(seen.lower), self.codec.pool(seen.upper)
        question = lower
        gates = [self.gate(lower.hidden) for _ in range(config.rounds)]  # all before the first pause: they count calls
        for gate in gates:
            message = self.codec.encode(question.hidden)  # m_g = Enc_g(H^g_l): the student speaks
            inputs = {"message": message}
            if config.message_tokens == 0:
                inputs["message_mask"] = question.mask
            if gate is not None:
                inputs["message_gate"] = gate.to(message.dtype)
            views = yield from self._ask(inputs, upper, batch, teachers)
            answer = self.codec.decode(views["answer"])  # A = Dec_g(m_h): the student reads the answer
            terms = Terms()
            add_answer_terms(terms, config, seen, batch, upper, answer)
            self._add_consistency(terms, views, message, lower, upper)
            for name, (weight, term) in terms.losses.items():
                known = total.losses.get(name, (weight, 0.0))[1]
                total.losses[name] = (weight, known + term / config.rounds)
            total.monitors |= terms.monitors
            question = States(answer, upper.mask)  # ours: the next round asks about what was just read
        return total

    def _ask(
        self, inputs: dict[str, torch.Tensor], upper: States, batch: Batch, teachers: Teachers
    ) -> Pausing[dict[str, torch.Tensor]]:
        """One exchange with the teacher about a message: the answer, and what the consistency terms need."""
        config = self.config
        outputs = ["answer"]
        if config.asks_about_input:
            inputs |= teachers.first.own(batch)
        if config.w_message_consistency and config.pairing == "same_input":
            outputs += ["teacher_message.enter", "teacher_message.exit"]
            if config.consistency == "cross":
                outputs.append("cross_consistency")
                inputs["message_exit"] = self.codec.encode(upper.hidden)
        if config.w_state_consistency:
            outputs.append("state_consistency")
        return (yield from teachers.pausing_ask_first(inputs, outputs))

    def _add_consistency(
        self, terms: Terms, views: dict[str, torch.Tensor], message: torch.Tensor, lower: States, upper: States
    ) -> None:
        config = self.config
        terms.monitors["message_variance"] = float(message_variance(message, lower.mask))
        if config.w_message_consistency:
            terms.add("message_consistency", config.w_message_consistency, self._spoken(views, message, lower, upper))
        if config.w_state_consistency:
            returned = views["state_consistency"]
            for state in (lower, upper):
                again = self.codec.decode(self.codec.encode(state.hidden))  # L_SC = || Dec_g(Enc_g(H)) - H ||^2
                returned = returned + state_consistency(state.hidden, again, state.mask)
            terms.add("state_consistency", config.w_state_consistency, returned)

    def _spoken(
        self, views: dict[str, torch.Tensor], message: torch.Tensor, lower: States, upper: States
    ) -> torch.Tensor:
        """L_MC in the chosen pairing and reading."""
        reading, temperature = self.config.consistency, self.config.temperature
        if self.config.pairing == "question_answer":  # || m_g - m_h ||^2
            pair = (message, lower.mask), (views["answer"], upper.mask)
            return message_consistency(*pair, reading=reading, temperature=temperature)
        enter, exit_ = views["teacher_message.enter"], views["teacher_message.exit"]
        if reading == "cross":  # || Dec_g(Enc_h(H^h)) - H^g ||^2, and the other way round on the server
            ours = message_consistency((self.codec.decode(enter), None), (lower.hidden, lower.mask), reading=reading)
            ours = ours + message_consistency(
                (self.codec.decode(exit_), None), (upper.hidden, upper.mask), reading=reading
            )
            return ours + views["cross_consistency"]
        # || Enc_g(H^g_l) - Enc_h(H^h_l) ||^2 + || Enc_g(H^g_u) - Enc_h(H^h_u) ||^2
        said = self.codec.encode(upper.hidden)
        pairs = [((message, lower.mask), (enter, None)), ((said, upper.mask), (exit_, None))]
        terms = [message_consistency(*pair, reading=reading, temperature=temperature) for pair in pairs]
        return terms[0] + terms[1]
