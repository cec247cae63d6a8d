"""One-way codec: the teacher speaks and is not asked; the control with Talking Models' parameters."""

from __future__ import annotations

from student_client.codecs import CodecShape, StudentCodec
from student_client.losses import state_consistency
from student_client.method_config import MethodConfig
from student_client.methods.answer import add_answer_terms
from student_client.methods.method import Asking, Context, Seen, Terms
from student_client.teachers.pausing import Pausing
from student_client.teachers.teachers import Teachers
from task_data import Batch, Task

__all__ = ["OneWay"]


class OneWay(Asking):
    """A = Dec_g(Enc_h(H^h_u)): the same four codec parts, no question (ours).

    Both encoders and decoders are there and are trained by state consistency as in Talking
    Models, so that a difference between the two is the question's and not the parameters'.
    """

    converses = True

    @classmethod
    def unsuited(cls, config: MethodConfig, task: Task) -> str:
        """Its answer is one vector a row, or a few: the head cannot read labels of tokens in it."""
        if task.level != "row" and (config.w_answer_task or config.w_answer_labels):
            return (
                "whose labels are those of tokens: the answer is about the whole row, and no token's label can be read in it; "
                "set method.w_answer_task and method.w_answer_labels to 0"
            )
        return ""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        config, width = context.config, context.student.width
        tokens = max(1, config.message_tokens)
        shape = CodecShape(width, config.message_width, tokens, config.pooling, config.codec_depth)
        self.codec = StudentCodec(shape, context.seed)

    @property
    def is_active(self) -> bool:
        """Whether any term has a weight."""
        return self.config.is_active

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Pausing[Terms]:
        """L_interact, L_SC and answer labels on what the teacher says of x unasked."""
        config, terms = self.config, Terms()
        asked = teachers.pausing_ask_first(teachers.first.own(batch), ["teacher_message.exit", "state_consistency"])
        views = yield from asked
        answer = self.codec.decode(views["teacher_message.exit"])
        add_answer_terms(terms, config, seen, batch, self.codec.pool(seen.upper), answer)
        returned = views["state_consistency"]
        for state in (self.codec.pool(seen.lower), self.codec.pool(seen.upper)):
            again = self.codec.decode(self.codec.encode(state.hidden))
            returned = returned + state_consistency(state.hidden, again, state.mask)
        terms.add("state_consistency", config.w_state_consistency, returned)
        return terms
