"""The methods of distillation, one file each, and the dict that names them."""

from __future__ import annotations

from student_client.method_config import METHOD_NAMES, MethodConfig
from student_client.methods.averaged import Averaged
from student_client.methods.committee import Committee
from student_client.methods.fitnets import FitNets
from student_client.methods.method import Context, Method, Methods, Outcome
from student_client.methods.minilm import MiniLM
from student_client.methods.one_way import OneWay
from student_client.methods.pkd import Pkd
from student_client.methods.rkd import Rkd
from student_client.methods.selection import FixedMix, RandomHard, RandomSoft, Selection
from student_client.methods.soft_labels import SoftLabels
from student_client.methods.talking import Talking
from student_client.teachers.remote import SessionOptions
from task_data import Task
from teaching_protocol.errors import ConfigError

__all__ = [
    "METHODS",
    "Context",
    "Method",
    "Methods",
    "Outcome",
    "build_methods",
    "check_suits",
    "named",
    "reads_student_tokens",
    "register",
    "session_options",
]

METHODS: dict[str, type[Method] | None] = {
    "task_only": None,
    "soft_labels": SoftLabels,
    "fitnets": FitNets,
    "rkd": Rkd,
    "pkd": Pkd,
    "minilm": MiniLM,
    "averaged": Averaged,
    "fixed_mix": FixedMix,
    "random_soft": RandomSoft,
    "random_hard": RandomHard,
    "selection": Selection,
    "one_way": OneWay,
    "talking": Talking,
    "committee": Committee,
}
"""Methods by name. `task_only` adds no term."""


def register(name: str, method: type[Method]) -> None:
    """Makes a method of yours known by name, to configurations and commands alike; in place of one that has the name."""
    METHODS[name] = method
    if name not in METHOD_NAMES:
        METHOD_NAMES.append(name)


def named(config: MethodConfig) -> dict[str, type[Method]]:
    """The methods a configuration names, without task only."""
    found = {name: METHODS[name] for name in config.names}
    return {name: method for name, method in found.items() if method is not None}


def check_suits(config: MethodConfig, task: Task) -> None:
    """Refuses methods that make no sense for a task.

    Raises:
        ConfigError: with the reason, and what to do.
    """
    for name, method in named(config).items():
        if reason := method.unsuited(config, task):
            raise ConfigError(f"method.names: received {name} for the task {task.name}, {reason}")


def reads_student_tokens(config: MethodConfig, task: Task) -> bool:
    """Whether teachers are to read the student's own tokens, which a method compares with theirs one by one."""
    return any(method.compares_tokens(config, task) for method in named(config).values())


def build_methods(context: Context) -> Methods:
    """Builds the methods of a run; the global random state is neither read nor moved.

    Raises:
        IncompatibleTeacher: a method needs what a teacher does not serve.
    """
    return Methods({name: method(context) for name, method in named(context.config).items()})


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
