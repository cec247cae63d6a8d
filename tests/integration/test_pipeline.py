"""Microbatches of one step that overlap at real servers: the same bits as one after the other, and nothing lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client.config import RunConfig, TeacherConfig
from student_client.training.runs import open_run
from teacher_server.app import TeacherApp
from teacher_server.config import ServerConfig
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import NonFiniteError, TeacherUnavailable
from tests.integration.gate import poll
from tests.integration.processes import Address, ServerProcess
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

Models = Callable[[str], Path]
KINDS = ["fine_tuning", "feature", "conversation"]
METHODS: dict[str, dict[str, Any]] = {
    "talking": {"method__message_dropout": 0.3, "method__silent_steps": 3},
    "talking in two rounds": {"method": "talking", "method__rounds": 2},
    "one_way": {},
    "committee": {"method__committee": {"tau": 0.3, "filter_after": 4, "w_labels": 0.0}},
    "random_hard": {"method__selection__kinds": KINDS},
    "talking and more": {"method": ["random_soft", "talking", "fitnets"], "method__selection__kinds": KINDS},
    "fitnets": {},
}


@pytest.fixture(scope="module")
def addresses(model_folder: Models) -> Iterator[dict[str, Address]]:
    """Deterministic servers: two with room, one with room for one call of all, one for one call of each session."""
    narrow = {"roomy": {}, "second": {}, "one permit": {"permits": 1}, "one call each": {"session_permits": 1}}
    exact = {"model": str(model_folder("bert")), "deterministic": True, "metrics_port": -1, "entry": 1, "exit": 4}
    process = ServerProcess({name: {**exact, **fields} for name, fields in narrow.items()})
    yield process.addresses
    assert process.close() == 0


def configured(folder: Path, output: str, name: str, pipeline: bool, *teachers: Address, **fields: Any) -> RunConfig:
    first, *others = [TeacherConfig(address=each.name) for each in teachers]
    asked = {"teacher": first, "complementary": tuple(others), "training__pipeline": pipeline}
    few = {"training__max_steps": 4, "training__checkpoint_every": 3, "training__accumulation": 4}
    return run_config(folder, output, **{"method": name, **asked, **few, **METHODS.get(name, {}), **fields})


def ended(config: RunConfig, steps: int | None = None, resume: bool = False) -> dict[str, Any]:
    """Everything a run ends with that could differ."""
    with open_run(config, progress=quiet(), resume=resume) as trainer:
        trainer.run(steps)
        sessions = trainer.teachers.export_states()
        lines = [
            line.partition('"loss"')[2].partition('"teacher_latency_s"')[0]
            for line in (config.output / "metrics.jsonl").read_text().splitlines()
        ]
        return {
            "student": {name: value.clone() for name, value in trainer.student.state_dict().items()},
            "method": {name: value.clone() for name, value in trainer.method.state_dict().items()},
            "random": torch.get_rng_state(),
            "sessions": sessions,
            "lines": lines,
            "rows": trainer.teachers.account.rows,
        }


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for part in ("student", "method"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), f"{part}: {name}"
    assert torch.equal(first["random"], second["random"])
    assert first["sessions"] == second["sessions"]
    assert first["lines"] == second["lines"]


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_bits_with_and_without(
    name: str, accumulation: int, addresses: dict[str, Address], tmp_path: Path
) -> None:
    """Student, codec, sessions, losses and random state; dropout is on, in the students and on the answers."""
    both = (addresses["roomy"], addresses["second"])
    plain, ahead = (
        ended(configured(tmp_path, str(pipeline), name, pipeline, *both, training__accumulation=accumulation))
        for pipeline in (False, True)
    )
    assert plain["lines"]
    assert plain["rows"] == ahead["rows"] > 0
    assert_same(plain, ahead)


@pytest.mark.parametrize("name", ["talking", "random_hard"])
def test_a_run_goes_on_with_or_without_from_either(name: str, addresses: dict[str, Address], tmp_path: Path) -> None:
    """Broken off in the middle of an epoch, and resumed under the other setting; random state and all."""
    whole = ended(configured(tmp_path, "whole", name, True, addresses["roomy"]))
    for before, after in ((True, False), (False, True), (True, True)):
        output = f"broken {before} {after}"
        ended(configured(tmp_path, output, name, before, addresses["roomy"]), steps=2)
        torch.manual_seed(99)
        config = configured(tmp_path, output, name, after, addresses["roomy"])
        resumed = ended(config, resume=True)
        assert_same({**whole, "lines": []}, {**resumed, "lines": []})


@pytest.mark.parametrize("narrow", ["one permit", "one call each"])
def test_a_server_without_room_for_two_calls_gives_the_same(
    narrow: str, addresses: dict[str, Address], tmp_path: Path
) -> None:
    """What is refused is sent again, and nothing is lost."""
    few = {"training__max_steps": 2, "training__accumulation": 3}
    roomy, tight = (
        ended(configured(tmp_path, name, "talking", True, addresses[name], **few)) for name in ("roomy", narrow)
    )
    assert_same(roomy, tight)


def test_an_error_is_the_same_with_and_without(addresses: dict[str, Address], tmp_path: Path) -> None:
    """Behind the first of four microbatches the codec becomes no number: the second one's answer is none, and it says so."""
    said = []
    for pipeline in (False, True):
        config = configured(tmp_path, str(pipeline), "talking", pipeline, addresses["roomy"])
        watched: list[float] = []
        with open_run(config, progress=quiet()) as trainer:

            def break_codec(outcome: Any, trainer: Any = trainer, watched: list[float] = watched) -> None:
                watched.append(outcome.loss.item())
                with torch.no_grad():
                    next(trainer.method.methods["talking"].codec.decoder.parameters()).fill_(torch.nan)

            torch.manual_seed(0)
            with pytest.raises(NonFiniteError, match="step 1: the loss is nan") as failure:
                trainer.steps.take(0, break_codec)
        said.append((watched, str(failure.value)))
    assert len(said[0][0]) == 1
    assert said[0] == said[1]


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_a_teacher_killed_in_the_middle_costs_what_it_costs_without(
    addresses: dict[str, Address], model_folder: Models, tmp_path: Path, patience_s: float
) -> None:
    """kill -9 with two calls of the session under way: the run goes on at another teacher, by itself or from the checkpoint."""
    whole = ended(configured(tmp_path, "whole", "talking", True, addresses["roomy"]))
    exact = {"model": str(model_folder("bert")), "deterministic": True, "entry": 1, "exit": 4}
    victim = ServerProcess({"victim": {**exact, "gate": str(tmp_path / "gate")}})
    address = victim.addresses["victim"]
    config = configured(tmp_path, "broken", "talking", True, address)
    reached = {"patience_s": patience_s, "addresses": (addresses["roomy"].name,) if patience_s else ()}
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update=reached)})  # type: ignore[union-attr]
    with ThreadPoolExecutor(1) as pool, open_run(config, progress=quiet()) as trainer:
        assert trainer.run(2) is None
        with address.gate.closed() as gate:  # type: ignore[union-attr]
            rest = pool.submit(trainer.run)
            gate.wait_until_entered()
            poll(lambda: address.metric("teacher_in_flight") == 2, "two calls are under way")
            victim.kill()
        victim.close()
        if patience_s:
            assert rest.result(60) is not None
        else:
            with pytest.raises(TeacherUnavailable, match="no teacher answers at"):
                rest.result(40)
    config = configured(tmp_path, "broken", "talking", True, addresses["roomy"])
    assert_same({**whole, "lines": []}, {**ended(config, resume=True), "lines": []})


class Held:
    """A server in this process, whose model waits at every entry until it is let on."""

    def __init__(self) -> None:
        teacher = FrozenTeacher(tiny_model("bert"), "tiny", tokenizer=tiny_tokenizer())
        teacher.family.blocks[-1].register_forward_pre_hook(self._hold)
        config = ServerConfig(model="tiny", port=0, metrics_port=-1, device="cpu", graph_cache_bytes=0)
        self.app = TeacherApp(config, teacher)
        self.is_open = True
        self.entered, self._let = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def address(self) -> Address:
        return Address(self.app.port, -1)

    @property
    def in_flight(self) -> float:
        """Calls that are admitted and not answered."""
        return self.app.metrics.registry.get_sample_value("teacher_in_flight") or 0.0

    def enters(self) -> None:
        """Returns once a call is at the model."""
        assert self.entered.acquire(timeout=20)

    def go_on(self) -> None:
        """Lets one call through the model."""
        self._let.release()

    def open(self) -> None:
        """Lets everything through, now and later."""
        self.is_open = True
        self._let.release(100)

    def _hold(self, *_: Any) -> None:
        if not self.is_open:
            self.entered.release()
            assert self._let.acquire(timeout=30)


@contextmanager
def held() -> Iterator[Held]:
    server = Held()
    with server.app:
        try:
            yield server
        finally:
            server.open()


@contextmanager
def stepping(server: Held, folder: Path, pipeline: bool, watch: Callable[[Any], None]) -> Iterator[Future[Any]]:
    """One step of three microbatches in a thread, at a model that is closed."""
    alone = {"w_message_consistency": 0.0, "w_state_consistency": 0.0, "answer_from": "message", "inject": "replace"}
    fields = {f"method__{name}": value for name, value in alone.items()}  # so that a call enters the model once
    config = configured(
        folder, f"run {pipeline}", "talking", pipeline, server.address, training__accumulation=3, **fields
    )
    with ThreadPoolExecutor(1) as pool, open_run(config, progress=quiet()) as trainer:
        server.is_open = False
        yield pool.submit(trainer.steps.take, 0, watch)


def nothing(outcome: Any) -> None:
    """For who watches nothing."""


def _teacher_is_ahead(folder: Path) -> bool:
    """False, too, where the second question came first: the two travel in threads of their own."""
    folder.mkdir()
    with held() as server, stepping(server, folder, True, nothing) as step:
        server.enters()
        poll(lambda: server.in_flight == 2, "the second question is there while the first is answered")
        server.go_on()
        server.enters()
        end = time.monotonic() + 4
        while not (is_ahead := server.in_flight == 3) and time.monotonic() < end:
            time.sleep(0.01)
        server.open()
        assert step.result(20)["teacher_grad_norm"] > 0
    return is_ahead


def test_while_the_student_computes_the_teacher_has_the_next_question(tmp_path: Path) -> None:
    """Each call is held at the model, which a Backward without a kept graph enters, too."""
    assert any(_teacher_is_ahead(tmp_path / str(attempt)) for attempt in range(6)), (
        "behind the second question the first gradient and the third question"
    )
    with held() as server, stepping(server, tmp_path, False, nothing) as step:
        for _ in range(6):
            server.enters()
            assert server.in_flight == 1
            server.go_on()
        assert step.result(20)["teacher_grad_norm"] > 0


def test_an_interrupt_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    """Raised as Ctrl-C is, while a call of the session is held at the model: the run ends all the same, and its threads do."""

    def interrupt(outcome: Any) -> None:
        raise KeyboardInterrupt

    with held() as server:
        with stepping(server, tmp_path, True, interrupt) as step:
            for _ in range(3):  # the first two questions, the first gradient; the third question stays
                server.enters()
                server.go_on()
            if not wait([step], 5).done:  # the third question overtook the gradient
                server.enters()
                server.go_on()
            with pytest.raises(KeyboardInterrupt):
                step.result(20)
        names = [thread.name for thread in threading.enumerate()]
        poll(
            lambda: not any(thread.name.startswith("calls") for thread in threading.enumerate()),
            f"threads end: {names}",
        )
        poll(lambda: len(server.app.actor.sessions) == 0, "the session is gone")
