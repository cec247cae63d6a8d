"""One-way codec: the teacher speaks and is not asked; the control with Talking Models' parameters."""

from __future__ import annotations

from student_client.codecs import CodecShape, StudentCodec
from student_client.config import MethodConfig
from student_client.losses import state_consistency
from student_client.methods.answer import add_answer_terms
from student_client.methods.method import Method, Seen, Terms, needed
from student_client.remote import Teacher
from student_models import Student
from task_data import Batch

__all__ = ["OneWay"]


class OneWay(Method):
    """A = Dec_g(Enc_h(H^h_u)): the same four codec parts, no question (ours).

    Both encoders and decoders are there and are trained by state consistency as in Talking
    Models, so that a difference between the two is the question's and not the parameters'.
    """

    needs_teacher = True
    uses_unlabelled = True

    def __init__(self, config: MethodConfig, student: Student, seed: int) -> None:
        super().__init__()
        self.config = config
        tokens = max(1, config.message_tokens)
        shape = CodecShape(student.width, config.message_width, tokens, config.pooling, config.codec_depth)
        self.codec = StudentCodec(shape, seed)

    def terms(self, seen: Seen, batch: Batch, teacher: Teacher | None) -> Terms:
        """L_interact, L_SC and answer labels on what the teacher says of x unasked."""
        config, terms = self.config, Terms()
        if not config.is_active:
            return terms
        views = needed(teacher).forward_ports(batch.teacher, ["teacher_message.exit", "state_consistency"])
        answer = self.codec.decode(views["teacher_message.exit"])
        add_answer_terms(terms, config, seen, batch, self.codec.pool(seen.upper), answer)
        returned = views["state_consistency"]
        for state in (self.codec.pool(seen.lower), self.codec.pool(seen.upper)):
            again = self.codec.decode(self.codec.encode(state.hidden))
            returned = returned + state_consistency(state.hidden, again, state.mask)
        terms.add("state_consistency", config.w_state_consistency, returned)
        return terms
