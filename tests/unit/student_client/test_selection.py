"""Selected knowledge on tiny students of every modality against real teachers in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from student_client.losses import task_loss
from student_client.method_config import MethodConfig, SelectionConfig
from student_client.methods import Context, Methods, build_methods
from student_client.methods.method import Seen
from student_client.methods.selection import Selection, Weighed
from student_client.selection.selector import Selector, SelectorCard
from student_client.teachers.teachers import Teachers
from student_client.training.runs import open_run
from student_models import Student
from task_data import Batch, TaskData
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import ConfigError, IncompatibleTeacher
from tests.unit.student_client.method_setup import MODALITIES, enrolled, one_batch, settings, student_and_data
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.student_client.test_baselines import headless, informed, informed_of

KINDS = ("fine_tuning", "response", "feature", "relation")
FIVE = (*KINDS, "conversation")
POLICIES = ("fixed_mix", "random_soft", "random_hard", "selection")
FEATURE, RELATION = ("hidden.1.mean1", "hidden.4.mean1"), ("hidden.1.mean8", "hidden.4.mean8")
Weights = Callable[[Any, Any], torch.Tensor]


@pytest.fixture(scope="module")
def actors() -> dict[str, TeacherActor]:
    return {modality: local_teacher(informed_of(modality)) for modality in MODALITIES}


def saved_selector(folder: Path, student: Student, kinds: Sequence[str] = KINDS, **fields: Any) -> Path:
    Selector(SelectorCard(tuple(kinds), student.width, 32, **fields), seed=1).save(folder)
    return folder


def selecting(name: str, folder: Path, student: Student, **fields: Any) -> MethodConfig:
    """A configuration of a policy, with a selector on disk where it needs one."""
    kinds = fields.get("kinds", KINDS)
    if name == "selection":
        fields["selector"] = saved_selector(folder, student, kinds)
    return settings(names=(name,), selection=fields)


@contextmanager
def weighed_by(
    actor: TeacherActor, student: Student, data: TaskData, weights: Sequence[float], **fields: Any
) -> Iterator[tuple[Methods, Teachers]]:
    """`selection` under a policy that gives these weights, whatever it sees."""
    config = settings(names=("fixed_mix",), selection=fields)
    with enrolled(actor, config, student, data) as (_, teachers):
        context = Context(config, student, (teachers.first.teacher.card,), 0)
        yield Methods({"selection": Selection(context, lambda ours, theirs: torch.tensor(weights))}), teachers


@contextmanager
def asked(actor: TeacherActor) -> Iterator[list[tuple[str, ...]]]:
    """The output ports of every Forward that reaches the teacher."""
    found: list[tuple[str, ...]] = []
    forward = actor.forward

    def noting(request: Any, call: Any) -> Any:
        found.append(tuple(request.outputs))
        return forward(request, call)

    actor.forward = noting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        actor.forward = forward  # type: ignore[method-assign]


def method_of(methods: Methods) -> Weighed:
    (method,) = methods.methods.values()
    assert isinstance(method, Weighed)
    return method


def seen_by(student: Student, batch: Batch) -> Seen:
    states = [student.embed(batch.inputs)]
    for layer in range(student.layers):
        states.append(student.run(states[-1], layer, layer + 1))
    return Seen(student, states, student.head(states[-1]))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_teaches_on_every_modality(
    actors: dict[str, TeacherActor], modality: str, name: str, tmp_path: Path
) -> None:
    student, data = student_and_data(modality)
    config = selecting(name, tmp_path, student, kinds=FIVE)
    before = torch.get_rng_state()
    with enrolled(actors[modality], config, student, data) as (methods, teachers):
        assert torch.equal(torch.get_rng_state(), before), "building draws from the seed alone"
        student.eval()
        outcome = methods.loss(student, one_batch(student, data), teachers)
        assert torch.equal(torch.get_rng_state(), before)
        outcome.loss.backward()
        assert teachers.converse
    assert torch.isfinite(outcome.loss)
    assert all(parameter.grad is not None for parameter in student.parameters() if parameter.requires_grad)
    assert set(outcome.parts) <= set(FIVE)
    weights = {kind: outcome.monitors[f"action.{kind}"] for kind in FIVE}
    assert all(0 <= weight <= 1 for weight in weights.values())
    total = sum(weights[kind] * float(part) for kind, part in outcome.parts.items())
    assert outcome.loss.item() == pytest.approx(total, rel=1e-5)
    if name == "random_hard":
        assert set(weights.values()) <= {0.0, 1.0}
        assert set(outcome.parts) == {kind for kind, weight in weights.items() if weight}


def flow(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = []
    for a, b, real in zip(first, second, mask, strict=True):
        a, b = (functional.layer_norm(each[real], each.shape[-1:]) for each in (a, b))
        rows.append(a.T @ b / real.sum())
    return torch.stack(rows)


def test_the_losses_are_the_four_kinds_of_the_paper(actors: dict[str, TeacherActor]) -> None:
    """Each written out in float64 from the teacher's ports."""
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    with weighed_by(actors["text"], student, data, [1.0] * 4, segments=8) as (methods, teachers):
        seen = seen_by(student, batch)
        terms = method_of(methods).terms(seen, batch, teachers)
        known = teachers.first.observe(batch, ("logits", *FEATURE, *RELATION))
        kinds = method_of(methods).kinds
    y, teacher = seen.outputs.double(), known["logits"].double()
    picked = y.log_softmax(-1)[torch.arange(len(y)), batch.labels.clamp(min=0)][batch.labelled]
    p, q = (teacher / 2).softmax(-1), (y / 2).softmax(-1)
    found = {"fine_tuning": -picked.mean(), "response": 4 * (p * (p.log() - q.log())).sum(-1).mean()}
    states, errors, flows = (seen.lower, seen.upper), [], []
    for place, tap in enumerate(states):
        hidden, mask = tap.hidden.double(), tap.mask.double()[..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        ours = kinds["feature"].projections[place].double()(pooled)
        theirs = known[FEATURE[place]].double().squeeze(1)
        ours, theirs = (functional.layer_norm(each, each.shape[-1:]) for each in (ours, theirs))
        errors.append(((ours - theirs) ** 2).mean())
        flows.append(kinds["relation"].projections[place].double()(known[RELATION[place]].double()))
    found["feature"] = (errors[0] + errors[1]) / 2
    ours = flow(seen.lower.hidden.double(), seen.upper.hidden.double(), seen.lower.mask)
    theirs = flow(*flows, torch.ones(len(y), 8, dtype=torch.bool))
    found["relation"] = ((ours - theirs) ** 2).mean()
    for kind, value in found.items():
        assert terms.monitors[f"loss.{kind}"] == pytest.approx(value.item(), rel=1e-4), kind
        assert terms.losses[kind][1].item() == pytest.approx(1.0), "over its running mean, which is itself so far"


def test_a_regression_responds_by_the_squared_error_in_units_of_the_target(actors: dict[str, TeacherActor]) -> None:
    student, data = student_and_data("ratings")
    student.eval()
    batch = one_batch(student, data)
    with weighed_by(actors["ratings"], student, data, [1.0] * 4) as (methods, teachers):
        terms = method_of(methods).terms(seen_by(student, batch), batch, teachers)
        logits = teachers.first.observe(batch, ("logits",))["logits"]
    assert logits.shape == (len(batch), 1)
    wanted = (student(batch.inputs) - logits[:, 0]).square().mean().item()
    assert terms.monitors["loss.response"] == pytest.approx(wanted, rel=1e-5)
    assert terms.monitors["loss.fine_tuning"] == pytest.approx(
        task_loss(student(batch.inputs), batch.labels, batch.labelled).item(), rel=1e-5
    )


def test_each_loss_is_over_its_running_mean_which_a_checkpoint_keeps(actors: dict[str, TeacherActor]) -> None:
    """m_n = m_{n-1} + max(1/n, 1 - decay) (l_n - m_{n-1}); the weights stay what they are."""
    student, data = student_and_data("text")
    weights, decay = [0.5, 0.25, 1.0, 0.75], 0.6
    with weighed_by(actors["text"], student, data, weights, mean_decay=decay) as (methods, teachers):
        mean = dict.fromkeys(KINDS, 0.0)
        for step in range(1, 6):
            outcome = methods.loss(student, one_batch(student, data, epoch=step), teachers)
            for kind in KINDS:
                loss = outcome.monitors[f"loss.{kind}"]
                mean[kind] += max(1 / step, 1 - decay) * (loss - mean[kind])
                assert float(outcome.parts[kind]) == pytest.approx(loss / mean[kind], rel=1e-4)
        state = {name: value.clone() for name, value in methods.state_dict().items()}
        batch = one_batch(student, data, epoch=9)
        student.eval()
        going_on = methods.loss(student, batch, teachers)
        methods.load_state_dict(state)
        again = methods.loss(student, batch, teachers)
    assert torch.equal(going_on.loss, again.loss)


def test_a_batch_without_a_label_has_no_fine_tuning_and_leaves_its_mean_alone(actors: dict[str, TeacherActor]) -> None:
    student, data = student_and_data("text")
    batch = one_batch(student, data)
    bare = replace(batch, labelled=torch.zeros_like(batch.labelled))
    with weighed_by(actors["text"], student, data, [1.0, 0.0, 0.0, 0.0]) as (methods, teachers):
        outcome = methods.loss(student, bare, teachers)
        outcome.loss.backward()
        assert method_of(methods).counts[0] == 0
    assert outcome.parts == {}
    assert outcome.loss.item() == 0.0
    assert all(value.grad is None or not value.grad.any() for value in student.parameters())


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([1.0, 0.0, 0.0, 0.0], []),
        ([1.0, 1.0, 0.0, 0.0], [("logits",)]),
        ([0.0, 0.0, 1.0, 0.0], [FEATURE]),
        ([0.0, 0.3, 0.04, 0.05], [("logits", *RELATION)]),
        ([0.0, 0.0, 0.0, 0.0], []),
    ],
)
def test_what_is_not_selected_is_not_asked(
    actors: dict[str, TeacherActor], weights: list[float], wanted: list[tuple[str, ...]]
) -> None:
    student, data = student_and_data("text")
    batch = one_batch(student, data)
    with weighed_by(actors["text"], student, data, weights) as (methods, teachers):
        own = teachers.first.fetch(batch, methods.observed[0])
        assert methods.observed == {0: ("pooled",)}
        known = replace(batch, known={0: own})
        with asked(actors["text"]) as ports:
            outcome = methods.loss(student, known, teachers)
            outcome.loss.backward()
        assert ports == wanted
        assert teachers.first.rows_saved == (0 if wanted else len(batch))
    chosen = {kind for kind, weight in zip(KINDS, weights, strict=True) if weight >= 0.05}
    assert set(outcome.parts) == chosen
    assert {name.removeprefix("loss.") for name in outcome.monitors if name.startswith("loss.")} == chosen
    assert outcome.monitors["fetched"] == pytest.approx(len(chosen - {"fine_tuning"}) / 3)


def test_a_conversation_that_is_not_selected_is_not_held(actors: dict[str, TeacherActor]) -> None:
    student, data = student_and_data("text")
    batch = one_batch(student, data)
    said = {}
    for weight in (0.0, 0.5):
        weights = [1.0, 0.0, 1.0, 0.0, weight]
        with weighed_by(actors["text"], student, data, weights, kinds=FIVE) as (methods, teachers):
            assert teachers.converse
            with asked(actors["text"]) as ports:
                outcome = methods.loss(student, batch, teachers)
                outcome.loss.backward()
            said[weight] = any("answer" in each for each in ports)
            assert teachers.first.rows_saved == (0 if weight else len(batch))
            norm = teachers.first.teacher.step(lr=1e-3)
            assert (norm > 0) == bool(weight)
            assert ("message_variance" in outcome.monitors) == bool(weight)
    assert said == {0.0: False, 0.5: True}


def test_the_task_is_counted_once_and_the_weights_of_the_kinds_decide(actors: dict[str, TeacherActor]) -> None:
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    with weighed_by(actors["text"], student, data, [0.25, 0.0, 0.0, 0.0]) as (methods, teachers):
        outcome = methods.loss(student, batch, teachers)
    assert outcome.loss.item() == pytest.approx(0.25)
    assert "task" not in outcome.parts


def test_random_weights_follow_from_seed_and_call_and_go_on_from_a_checkpoint(
    actors: dict[str, TeacherActor],
) -> None:
    student, data = student_and_data("text")
    card, batch = actors["text"].card, one_batch(student, data)

    def build(name: str, seed: int) -> Weighed:
        return method_of(build_methods(Context(settings(names=(name,)), student, (card,), seed)))

    def draws(method: Weighed, count: int) -> list[list[float]]:
        return [method.weigh(None, batch, None).tolist() for _ in range(count)]  # type: ignore[arg-type]

    soft, again, other, hard = (
        build(name, seed)
        for name, seed in (("random_soft", 1), ("random_soft", 1), ("random_soft", 2), ("random_hard", 1))
    )
    first = draws(soft, 40)
    assert first == draws(again, 40)
    assert first != draws(other, 40)
    again.load_state_dict(soft.state_dict())
    assert draws(soft, 3) == draws(again, 3)
    assert 0.35 < torch.tensor(first).mean() < 0.65
    tossed = torch.tensor(draws(hard, 200))
    assert set(tossed.unique().tolist()) == {0.0, 1.0}
    assert (tossed.sum(-1) >= 1).all()
    assert ((tossed.mean(0) > 0.4) & (tossed.mean(0) < 0.65)).all()


def train(student: Student, data: TaskData, methods: Methods, teachers: Teachers) -> None:
    torch.manual_seed(7)  # dropout
    optimizer = torch.optim.AdamW([*student.parameters(), *methods.parameters()], lr=1e-2)
    for epoch in range(4):
        outcome = methods.loss(student, one_batch(student, data, epoch=epoch), teachers)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()


def test_a_mix_of_zeros_trains_bit_equal_to_task_only_and_asks_nothing(actors: dict[str, TeacherActor]) -> None:
    alone, data = student_and_data("text")
    train(alone, data, Methods({}), Teachers())
    other, _ = student_and_data("text")
    config = settings(names=("fixed_mix",), selection={"mix": (0, 0, 0, 0)})
    with enrolled(actors["text"], config, other, data) as (methods, teachers):
        train(other, data, methods, teachers)
        assert methods.observed == {}
        assert teachers.account.rows == 0
    for (key, ours), (_, theirs) in zip(alone.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key


def test_a_fixed_mix_is_fetched_ahead_whole_and_takes_small_weights(actors: dict[str, TeacherActor]) -> None:
    student, data = student_and_data("text")
    config = settings(names=("fixed_mix",), selection={"mix": (1, 0.01, 0, 2)})
    with enrolled(actors["text"], config, student, data) as (methods, teachers):
        assert methods.observed == {0: ("logits", *RELATION)}
        outcome = methods.loss(student, one_batch(student, data), teachers)
    assert set(outcome.parts) == {"fine_tuning", "response", "relation"}


def test_the_selector_is_frozen_and_no_part_of_the_method(actors: dict[str, TeacherActor], tmp_path: Path) -> None:
    student, data = student_and_data("text")
    config = selecting("selection", tmp_path, student)
    before = (tmp_path / "selector.safetensors").read_bytes()
    with enrolled(actors["text"], config, student, data) as (methods, teachers):
        train(student, data, methods, teachers)
        assert not [name for name in methods.state_dict() if "actor" in name or "critic" in name]
        batch = one_batch(student, data)
        student.eval()
        outcome = methods.loss(student, batch, teachers)
        theirs = teachers.first.observe(batch, ("pooled",))["pooled"]
    upper = student.upper(student.lower(batch.inputs))
    mask = upper.mask[..., None].float()
    ours = (upper.hidden * mask).sum(1) / mask.sum(1)
    wanted = Selector.load(tmp_path).choose(ours, theirs)
    torch.testing.assert_close(torch.tensor([outcome.monitors[f"action.{kind}"] for kind in KINDS]), wanted)
    assert (tmp_path / "selector.safetensors").read_bytes() == before


def test_a_selector_is_needed_and_must_fit(actors: dict[str, TeacherActor], tmp_path: Path) -> None:
    student, data = student_and_data("text")
    card = actors["text"].card

    def build(**fields: Any) -> Methods:
        return build_methods(Context(settings(names=("selection",), selection=fields), student, (card,), 0))

    with pytest.raises(ConfigError, match=r"received none.*student-client select --output FOLDER"):
        build()
    folder = saved_selector(tmp_path / "four", student)
    with pytest.raises(ConfigError, match=r"received fine_tuning,feature, expected fine_tuning,response"):
        build(selector=folder, kinds=("fine_tuning", "feature"))
    Selector(SelectorCard(KINDS, student.width + 1, 32)).save(tmp_path / "wide")
    with pytest.raises(ConfigError, match=rf"width {student.width + 1}, received one of width {student.width}"):
        build(selector=tmp_path / "wide")
    Selector(SelectorCard(KINDS, student.width, 33)).save(tmp_path / "teacher")
    config = settings(names=("selection",), selection={"selector": tmp_path / "teacher"})
    with (
        enrolled(actors["text"], config, student, data) as (methods, teachers),
        pytest.raises(ConfigError, match="teachers of width 33, received one of width 32"),
    ):
        methods.loss(student, one_batch(student, data), teachers)


def test_a_selector_serves_another_student_of_its_width(actors: dict[str, TeacherActor], tmp_path: Path) -> None:
    first, _ = student_and_data("image")
    folder = saved_selector(tmp_path, first)
    films, ratings = student_and_data("ratings")
    assert films.width == first.width
    config = settings(names=("selection",), selection={"selector": folder})
    with enrolled(actors["ratings"], config, films, ratings, seed=9) as (methods, teachers):
        outcome = methods.loss(films, one_batch(films, ratings), teachers)
    assert torch.isfinite(outcome.loss)


@pytest.mark.parametrize("labels", [None, ("a", "b", "c")])
def test_a_kind_that_is_not_served_is_refused_unless_left_out(labels: tuple[str, ...] | None) -> None:
    """Without a head, and with one for other labels."""
    student, _ = student_and_data("text")
    card = local_teacher(headless() if labels is None else informed(labels)).card
    config = settings(names=("fixed_mix",))
    with pytest.raises(
        IncompatibleTeacher, match=r"'response'.*`logits`.*leave response out of method.selection.kinds"
    ):
        build_methods(Context(config, student, (card,), 0))
    without = settings(names=("fixed_mix",), selection={"kinds": ("fine_tuning", "feature", "relation")})
    methods = build_methods(Context(without, student, (card,), 0))
    assert methods.observed == {0: (*FEATURE, *RELATION)}


def test_layers_can_be_named_and_must_exist(actors: dict[str, TeacherActor]) -> None:
    student, _ = student_and_data("text")

    def build(**fields: Any) -> Methods:
        config = settings(names=("fixed_mix",), selection={"kinds": ("feature",), **fields})
        return build_methods(Context(config, student, (actors["text"].card,), 0))

    assert build(teacher_layers=(2, 3)).observed == {0: ("hidden.2.mean1", "hidden.3.mean1")}
    with pytest.raises(IncompatibleTeacher, match=r"hidden\.9\.mean1"):
        build(teacher_layers=(2, 9))


@pytest.mark.parametrize(
    "fields",
    [
        {"kinds": ("fine_tuning", "fine_tuning")},
        {"kinds": ("telepathy",)},
        {"mix": (1.0, 2.0)},
        {"mix": (1.0, 1.0, 1.0, -1.0)},
        {"learning": {"development_share": 0.0}},
    ],
    ids=str,
)
def test_settings_that_say_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Selection"):
        SelectionConfig(**fields)


def test_a_silent_conversation_is_refused(actors: dict[str, TeacherActor]) -> None:
    student, _ = student_and_data("text")
    zeros = dict.fromkeys(
        ("w_interact", "w_message_consistency", "w_state_consistency", "w_answer_task", "w_answer_labels"), 0.0
    )
    config = settings(names=("fixed_mix",), selection={"kinds": FIVE}, **zeros)
    with pytest.raises(ConfigError, match="leave conversation out"):
        build_methods(Context(config, student, (actors["text"].card,), 0))


def weights_after(config: Any, steps: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
    """Student and method after a run against a fresh teacher, as a restarted server would be."""
    actor = local_teacher(informed(("no", "yes")), device="cpu", entry=1, exit=3, deterministic=True)
    with open_run(config, teachers=[actor], progress=quiet(), resume=resume) as trainer:
        trainer.run(steps)
        return {**trainer.student.state_dict(), **trainer.method.state_dict()}


@pytest.mark.parametrize("name", POLICIES)
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, name: str) -> None:
    student, _ = student_and_data("text")
    fields: dict[str, Any] = {"method__selection__kinds": FIVE}
    if name == "selection":
        fields["method__selection__selector"] = saved_selector(tmp_path / "selector", student, FIVE)
    fields = {key.replace("__", "."): value for key, value in fields.items()}
    whole = weights_after(run_config(tmp_path, "whole", name, **fields))
    broken = run_config(tmp_path, "broken", name, **fields)
    weights_after(broken, steps=10)
    torch.manual_seed(99)
    resumed = weights_after(broken, resume=True)
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
