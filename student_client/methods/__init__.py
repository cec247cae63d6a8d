"""The methods of distillation, one file each, and the dict that names them."""

from __future__ import annotations

from student_client.config import MethodConfig
from student_client.methods.method import Method, Methods, Outcome
from student_client.methods.one_way import OneWay
from student_client.methods.talking import Talking
from student_client.remote import SessionOptions
from student_models import Student
from teaching_protocol.errors import ConfigError, IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply

__all__ = ["METHODS", "Method", "Methods", "Outcome", "build_methods", "check_card", "session_options"]

METHODS: dict[str, type[OneWay] | type[Talking] | None] = {
    "task_only": None,
    "one_way": OneWay,
    "talking": Talking,
}
"""Methods by name. `task_only` adds no term."""


def build_methods(config: MethodConfig, student: Student, seed: int) -> Methods:
    """Builds the methods of a run; the global random state is neither read nor moved.

    Raises:
        ConfigError: an unknown method.
    """
    for name in config.names:
        if name not in METHODS:
            raise ConfigError(f"method.names: received {name!r}, expected some of {', '.join(METHODS)}")
    found = {name: METHODS[name] for name in config.names}
    return Methods({name: method(config, student, seed) for name, method in found.items() if method is not None})


def session_options(config: MethodConfig, task: str, seed: int) -> SessionOptions:
    """What the teacher must know of the method to open a session for it."""
    return SessionOptions(
        task=task,
        message_width=config.message_width,
        message_tokens=config.message_tokens,
        pooling=config.pooling,
        codec_depth=config.codec_depth,
        answer_from=config.answer_from,
        inject=config.inject,
        seed=seed,
    )


def check_card(card: DescribeReply, teacher_inputs: tuple[str, ...]) -> None:
    """Refuses a teacher that cannot read the student's view for it.

    Raises:
        IncompatibleTeacher: with the ports that are missing.
    """
    missing = [name for name in teacher_inputs if name not in card.input_ports]
    if missing:
        raise IncompatibleTeacher(
            f"the teacher {card.model_name} reads {', '.join(card.input_ports)}, but this data set speaks to it in "
            f"{', '.join(missing)}; serve a teacher of that modality"
        )
