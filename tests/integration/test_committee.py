"""A committee of real servers: its calls overlap, and a teacher that is killed or was never there is dealt with by rule."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import RemoteTeacher
from student_client.config import RunConfig, TeacherConfig
from student_client.methods import Context, Methods, build_methods, session_options
from student_client.reporting.progress import Progress
from student_client.teachers.exchange import exchange_many
from student_client.teachers.teachers import Absence, Member, Teachers
from student_client.training.runs import open_run
from task_data import teacher_ports
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import TeacherUnavailable
from tests.calls import WIDTH
from tests.integration.gate import poll
from tests.integration.processes import Address, ServerProcess
from tests.unit.student_client.committee_setup import committee_config
from tests.unit.student_client.method_setup import one_batch, student_and_data
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

Models = Callable[[str], Path]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_forwards_overlap_and_backwards_overlap(model_folder: Models, tmp_path: Path) -> None:
    """Each model is held at its gate until the other one is entered, too; without kept graphs Backward enters it again."""
    model = str(model_folder("bert"))
    configs = {name: {"model": model, "gate": str(tmp_path / name), "graph_cache_bytes": 0} for name in ("one", "two")}
    process = ServerProcess(configs)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(process.close)
        both = [
            stack.enter_context(RemoteTeacher(address.name, student="s", message_width=WIDTH))
            for address in process.addresses.values()
        ]
        messages = [torch.randn(2, 3, WIDTH, requires_grad=True) for _ in both]
        questions = [each.question({"message": said}, ["answer"]) for each, said in zip(both, messages, strict=True)]

        def held(job: Callable[[], Any]) -> Any:
            gates: Any = [address.gate for address in process.addresses.values()]
            with gates[0].closed(), gates[1].closed():
                running = pool.submit(job)
                for gate in gates:
                    gate.wait_until_entered()
                assert not running.done()
            return running.result(20)

        answers = [reply["answer"] for reply in held(lambda: exchange_many(questions))]
        held(lambda: sum(answer.sum() for answer in answers).backward())
        assert all(said.grad is not None for said in messages)


@dataclass
class Run:
    """A student of its own with a committee of two, under one rule."""

    student: Any
    methods: Methods
    teachers: Teachers
    batch: Any
    said: list[str] = field(default_factory=list)

    def step(self) -> dict[str, float]:
        outcome = self.methods.loss(self.student, self.batch, self.teachers)
        outcome.loss.backward()
        return {**outcome.monitors, **self.teachers.step(lr=0.01)}


@contextmanager
def run_of(rule: Any, *addresses: Address) -> Iterator[Run]:
    student, data = student_and_data("text")
    config, served, said = committee_config(), teacher_ports(data.train), list[str]()
    members = []
    for place, address in enumerate(addresses):
        options = session_options(config, "task", place)
        teacher = RemoteTeacher(address.name, student=f"{rule}-{place}", patience_s=0.2, **options)
        members.append(Member(teacher, served, place, f"teacher {place}"))
    teachers = Teachers(members, absence=Absence(rule, 60.0, 0.05, said.append))
    try:
        teachers.enroll()
        methods = build_methods(Context(config, student, teachers.cards, 0))
        yield Run(student, methods, teachers, one_batch(student, data), said)
    finally:
        teachers.leave()


def test_one_of_two_is_killed_in_mid_training(
    servers: dict[str, Address], model_folder: Models, tmp_path: Path
) -> None:
    """kill -9 while three students wait for it, each under another rule; then it is started again at the same port."""
    config = {"model": str(model_folder("bert")), "port": free_port(), "metrics_port": -1}
    victim = ServerProcess({"victim": {**config, "gate": str(tmp_path)}})
    address = victim.addresses["victim"]
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        runs = {rule: stack.enter_context(run_of(rule, servers["bert"], address)) for rule in ("fail", "wait", "skip")}
        for run in runs.values():
            assert run.step()["teacher_grad_norm.1"] > 0
            run.teachers.export_states()
        with address.gate.closed() as gate:  # type: ignore[union-attr]
            steps: dict[str, Future[Any]] = {rule: pool.submit(run.step) for rule, run in runs.items()}
            gate.wait_until_entered()
            victim.kill()
        victim.close()
        with pytest.raises(TeacherUnavailable, match="no teacher answers at") as failure:
            steps["fail"].result(20)
        assert "this was the teacher 'teacher 1'" in failure.value.__notes__
        alone = steps["skip"].result(20)
        assert alone["teachers_missing"] == 1.0
        assert alone["importance.0"] == 1.0
        assert alone["teacher_grad_norm"] > 0
        assert runs["skip"].step()["teachers_missing"] == 1.0
        poll(lambda: runs["wait"].said, "the student that waits says so")
        assert not steps["wait"].done()
        again = ServerProcess({"victim": config})
        stack.callback(again.close)
        assert again.addresses["victim"].name == address.name
        waited = steps["wait"].result(60)
        assert waited["teacher_grad_norm.1"] > 0
        poll(lambda: runs["skip"].step()["teachers_missing"] == 0.0, "the teacher joins again", 30)
        assert runs["skip"].step()["importance.1"] > 0
        for rule in ("wait", "skip"):
            assert runs[rule].teachers[1].teacher.steps >= 2, "it went on with the state of its first step"
            assert "is there again" in runs[rule].said[-1]
        for run in runs.values():
            run.teachers.leave()


def app(port: int) -> TeacherApp:
    teacher = FrozenTeacher(tiny_model("bert"), "tiny", tokenizer=tiny_tokenizer())
    return TeacherApp(ServerConfig(model="tiny", port=port, metrics_port=-1, device="cpu"), teacher)


def committee_run(folder: Path, rule: str, there: str, late: int, **fields: Any) -> RunConfig:
    return run_config(
        folder,
        **{
            "method": "committee",
            "method__committee": {"on_missing": rule, "wait_s": 30, "retry_s": 0},
            "teacher": TeacherConfig(address=there),
            "complementary": (TeacherConfig(address=f"127.0.0.1:{late}"),),
            "training__max_steps": 5,
            **fields,
        },
    )


class Told(Progress):
    """Keeps what a run says, and calls back."""

    def __init__(self, hear: Callable[[str], None] = lambda sentence: None) -> None:
        super().__init__("told", quiet=True)
        self.sentences: list[str] = []
        self._hear = hear

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self._hear(sentence)


def test_down_at_the_start_under_skip(servers: dict[str, Address], tmp_path: Path) -> None:
    """The run starts without it and says so; once it is served, it joins. A resumed run starts without it, too."""
    port, told = free_port(), Told()
    config = committee_run(tmp_path, "skip", servers["bert"].name, port, training__max_steps=100_000)
    with open_run(config, progress=told) as trainer:
        assert trainer.teachers[1].is_missing
        assert "the teacher 'complementary 1' is missing (no teacher answers at" in told.sentences[0]
        assert trainer.run(2) is None
        assert trainer.teachers.account.rows == 2 * 8
        with app(port):
            poll(lambda: trainer.run(1) or not trainer.teachers[1].is_missing, "the teacher joins", 30)
            assert any("is there again and goes on with a fresh codec" in sentence for sentence in told.sentences)
            asked = trainer.teachers[1].teacher.costs[1]
            trainer.run(1)
            assert trainer.teachers[1].teacher.costs[1] == asked + 8
            state = trainer.teachers[1].state
    with open_run(config, resume=True, progress=quiet()) as trainer:
        assert trainer.teachers[1].is_missing
        assert trainer.teachers[1].state == state != b"", "it is kept for the teacher to join with"
        assert trainer.run(1) is None


def test_down_at_the_start_under_wait(servers: dict[str, Address], tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        starting: list[Future[TeacherApp]] = []

        def start(sentence: str) -> None:
            if not starting:
                starting.append(pool.submit(lambda: stack.enter_context(app(port))))

        told = Told(start)
        with open_run(committee_run(tmp_path, "wait", servers["bert"].name, port), progress=told) as trainer:
            result = trainer.run()
        assert "waiting up to 30 s for it" in told.sentences[0]
    assert result is not None
    assert result.steps == 5
    assert result.teacher_rows == 2 * 5 * 8


@pytest.mark.parametrize(("rule", "names"), [("fail", "committee"), ("skip", ["committee", "one_way"])])
def test_down_at_the_start_where_it_is_needed(
    servers: dict[str, Address], tmp_path: Path, rule: str, names: Any
) -> None:
    """Under fail, and beside a method that is built from every teacher's card."""
    fields = {"teacher": TeacherConfig(address=servers["bert"].name, deadline_s=0.5)} if rule == "fail" else {}
    config = committee_run(tmp_path, rule, servers["bert"].name, free_port(), **fields)
    config = config.model_copy(
        update={
            "method": config.method.model_copy(update={"names": tuple([names] if isinstance(names, str) else names)}),
            "complementary": tuple(each.model_copy(update={"deadline_s": 0.5}) for each in config.complementary),
        }
    )
    with pytest.raises(TeacherUnavailable, match="no teacher answers at"), open_run(config, progress=quiet()):
        pass


def test_all_down_at_the_start_is_an_error_even_with_skip(tmp_path: Path) -> None:
    config = committee_run(tmp_path, "skip", f"127.0.0.1:{free_port()}", free_port())
    with (
        pytest.raises(TeacherUnavailable, match="none of the 2 teachers can be reached"),
        open_run(config, progress=quiet()),
    ):
        pass
