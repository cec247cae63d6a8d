"""A selector trained over episodes: in each a new student learns, and the selector with it; knows no command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from student_client.config import RunConfig
from student_client.losses import calibrated_cross_entropy
from student_client.methods import Context, Methods
from student_client.methods.selection import Selection
from student_client.reporting.progress import Journal, Progress
from student_client.selection.development import hold_out
from student_client.selection.learning import Learner, Phase
from student_client.selection.selector import Selector, SelectorCard
from student_client.students import build_student
from student_client.teachers.teachers import Teachers
from student_client.training.acceleration import build_accelerator, compute_threads, exact_algorithms
from student_client.training.connecting import connected
from student_client.training.evaluate import evaluate, labelled_outputs
from student_client.training.interrupts import Interrupts
from student_client.training.steps import Steps
from student_models import Student, Tensors
from task_data import Split, TaskData, load_data, teacher_ports, teacher_view
from teaching_protocol.errors import ConfigError
from teaching_protocol.verbs import TeacherVerbs

__all__ = ["SelectorTraining", "train_selector"]

_WRITTEN = ("selector.json", "selector.safetensors", "selector.jsonl", "config.json")


@dataclass(frozen=True)
class SelectorTraining:
    """What came of it: finished episodes, whose selector is in the folder, and the signal that ended it, 0 for none."""

    episodes: int
    signal: int


def train_selector(
    config: RunConfig,
    episodes: int,
    *,
    overwrite: bool = False,
    teachers: Sequence[TeacherVerbs] = (),
    progress: Progress | None = None,
) -> SelectorTraining:
    """Trains a selector for the runs of a configuration, and saves it after every episode (arXiv 2302.00444).

    Every episode a new student, of seed + episode, takes the configuration's steps by the method `selection`, whatever
    `method.names` says. The reward is measured on a development split off the labelled training rows, which the
    episodes do not train on; validation and test rows are not looked at.

    Args:
        config: of the runs; its `output` receives the selector, selector.jsonl (one line a phase) and config.json.
        episodes: how many, 1 or more.
        overwrite: give up the selector that the output folder holds.
        teachers: teachers in this process, in place of those at the addresses.
        progress: where to report; None reports to the standard output.

    Raises:
        ConfigError: a configuration that cannot be used, or an output folder that holds a selector.
        DataError: data that cannot be had, or a development split that would be empty.
        TeachingError: the teacher refuses or cannot go on.
    """
    if episodes < 1:
        raise ConfigError(f"episodes: received {episodes}, expected 1 or more")
    if config.data.streaming:
        raise ConfigError(
            "data.streaming: a selector holds rows out of the training split; give it some that fit in memory"
        )
    config = _prepared(config)
    progress = progress or Progress("selector")
    data, learning, seed = load_data(config.data), config.method.selection.learning, config.training.seed
    train, development = hold_out(data.train, learning.development_share, seed)
    data = replace(data, train=train)
    served = teacher_ports(data.train)
    asking = connected(config, data.task.name, served, teachers, progress.say)
    with compute_threads(config.training.threads), asking as asked:
        card = _card(config, data, asked)
        _claim(config, overwrite)
        journal = Journal(config.output / "selector.jsonl")
        learner = Learner(Selector(card, seed), learning, seed, lambda phase: journal.write(asdict(phase)))
        running = _Episodes(config, data, development, learner, asked, progress)
        with Interrupts() as interrupts, exact_algorithms(config.training.deterministic):
            done = running.run(episodes, lambda: bool(interrupts.signal))
        return SelectorTraining(done, interrupts.signal)


class _Episodes:
    """The episodes of one selector, against the same teachers."""

    def __init__(
        self,
        config: RunConfig,
        data: TaskData,
        development: Split,
        learner: Learner,
        teachers: Teachers,
        progress: Progress,
    ) -> None:
        self.config, self.data, self.development = config, data, development
        self.learner, self.teachers, self.progress = learner, teachers, progress
        self._sessions = teachers.export_states()  # every student begins with the teacher's codec as it was

    def run(self, episodes: int, is_ended: Callable[[], bool]) -> int:
        """Runs them, and saves the selector after each; gives how many came to their end."""
        try:
            for number in range(1, episodes + 1):
                if not self._run_one(number, episodes, is_ended):
                    return number - 1
                self.learner.selector.save(self.config.output)
            return episodes
        finally:
            self.progress.close()

    def _run_one(self, number: int, episodes: int, is_ended: Callable[[], bool]) -> bool:
        """One episode; False if it was broken off."""
        steps = self._new_student(number)
        if number == 1:
            self.progress.start(episodes * steps.total, 0)
        view, phase_steps = steps.student.view(self.development.columns), self.learner.settings.phase_steps
        calibrated = self.learner.settings.calibrated
        began = loss = _development_loss(steps.student, view, self.development, calibrated)
        self.learner.begin(loss)
        try:
            for step in range(1, steps.total + 1):
                if is_ended():
                    return False
                steps.take(step - 1, lambda outcome: None)
                self.progress.advance((number - 1) * steps.total + step)
                if step % phase_steps == 0 or step == steps.total:
                    loss = _development_loss(steps.student, view, self.development, calibrated)
                    self.learner.measure(loss)
        finally:
            steps.batches.close()
        last = self.learner.finish()
        self.progress.say(
            f"episode {number}/{episodes}: development loss {began:.4f} -> {loss:.4f}  {self._said(last)}"
        )
        return True

    def _new_student(self, number: int) -> Steps:
        """A student of its own seed, and its steps."""
        config = _reseeded(self.config, number)
        student = build_student(config.student, self.data)
        context = Context(config.method, student, self.teachers.cards, config.method.seed)
        methods = Methods({"selection": Selection(context, self.learner.act)})
        self.teachers.import_states(self._sessions)
        accelerator = build_accelerator(config.training, config.output)
        steps = Steps(config, self.data.train, student, methods, self.teachers, accelerator)
        torch.manual_seed(config.training.seed)  # of dropout, as a run does
        student.train()
        return steps

    def _said(self, phase: Phase | None) -> str:
        if phase is None:
            return ""
        weights = zip(self.learner.selector.card.kinds, phase.action, strict=True)
        return " ".join(f"{kind} {weight:.2f}" for kind, weight in weights)


def _development_loss(student: Student, view: Tensors, development: Split, calibrated: bool) -> float:
    """The loss whose fall is the reward: cross-entropy, calibrated or not; of several labels the binary one, of a number the mean squared error.

    Args:
        student: on any device; its mode is restored.
        view: its input tensors for the development rows.
        development: what `hold_out` held out.
        calibrated: whether `calibrated_cross_entropy` is measured (ours) or the cross-entropy (the paper).
    """
    if student.task.kind != "single_label" or not calibrated:
        return evaluate(student, view, development).loss
    return calibrated_cross_entropy(*labelled_outputs(student, view, development)).item()


def _prepared(config: RunConfig) -> RunConfig:
    """The same run by the method `selection`, without what only a run writes."""
    method = config.method.model_copy(update={"names": ("selection",)})
    training = config.training.model_copy(update={"tensorboard": False})
    return config.model_copy(update={"method": method, "training": training})


def _reseeded(config: RunConfig, number: int) -> RunConfig:
    """The configuration of an episode: its student, codecs and order are drawn anew."""
    parts = {name: getattr(config, name) for name in ("student", "method", "training")}
    return config.model_copy(
        update={name: part.model_copy(update={"seed": part.seed + number}) for name, part in parts.items()}
    )


def _card(config: RunConfig, data: TaskData, teachers: Teachers) -> SelectorCard:
    """The selector's shape: the student's width, and that of the teacher's `pooled`, which it is asked for once."""
    settings, member = config.method.selection, teachers.first
    student = build_student(config.student, data)
    Selection(Context(config.method, student, teachers.cards, 0), lambda ours, theirs: theirs)  # refuses what cannot be
    row = {name: view[:1] for name, view in teacher_view(data.train, member.ports).items()}
    width = member.teacher.observe(row, ["pooled"])["pooled"].shape[-1]
    learning = settings.learning
    return SelectorCard(settings.kinds, student.width, width, learning.hard, learning.threshold)


def _claim(config: RunConfig, overwrite: bool) -> None:
    """Makes the folder, refuses one that holds a selector unless it is given up, and writes config.json.

    Raises:
        ConfigError: it holds a selector, or cannot be written.
    """
    output = config.output
    found = [name for name in _WRITTEN if (output / name).exists()]
    if found and not overwrite:
        raise ConfigError(
            f"output: received {output}, which holds {', '.join(found)} already; replace it by --overwrite, or give "
            "another output"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in found:
            (output / name).unlink()
        (output / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output: received {output}, expected a folder to write to ({error})") from error
