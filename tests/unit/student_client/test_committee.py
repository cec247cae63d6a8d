"""DiverseDistill on tiny students against real teachers of other families and widths in this process."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from student_client.losses import task_loss
from student_client.methods import Context, Methods, build_methods
from student_client.methods.importance import importance
from student_client.teachers.teachers import Teachers
from student_client.training.runs import open_run
from task_data import Batch
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teaching_protocol.errors import ConfigError, IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply
from tests.unit.student_client.committee_setup import (
    committee,
    committee_config,
    module_of,
    rows_run,
    teachers_of,
    train,
)
from tests.unit.student_client.method_setup import MODALITIES, frozen, one_batch, student_and_data
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.student_client.test_baselines import informed_of


@pytest.fixture
def two(tmp_path: Path) -> list[TeacherActor]:
    """A BERT of width 48 with five labels, and a Llama of width 32."""
    return teachers_of("text", tmp_path)


def plain(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """An MLP of LayerNorm, linear layers and GELU, written out in float64."""
    parameters = [each.detach().double() for each in module.parameters()]
    scale, shift, *layers = parameters
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * scale + shift
    for level in range(0, len(layers), 2):
        if level:
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = x @ layers[level].T + layers[level + 1]
    return x


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def mean_state(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = [row[real].double().mean(0) for row, real in zip(hidden, mask, strict=True)]
    return torch.stack(rows).detach()


@pytest.mark.parametrize("target", ["each", "mixture"])
@pytest.mark.parametrize("embedding", [True, False])
def test_the_equations_in_float64(two: list[TeacherActor], target: str, embedding: bool) -> None:
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    config = committee_config(
        committee={"target": target, "embedding": embedding, "embedding_width": 5},
        message_dropout=0.0,
        question_scale=1.0,
    )
    with committee(two, student, data, config) as (methods, teachers):
        module = module_of(methods)
        augmenter = module.question_augmenter
        found = methods.loss(student, batch, teachers)
        lower = student.lower(batch.inputs)
        upper = student.upper(lower)
        x, u = mean_state(lower.hidden, lower.mask), mean_state(upper.hidden, upper.mask)
        if embedding:
            e = augmenter.embeddings.detach().double()  # type: ignore[union-attr]
            k = x @ augmenter.key.detach().double().T  # type: ignore[union-attr]
            s = k @ e.T / math.sqrt(5)
        else:
            scorer: Any = augmenter.scorer
            s = x @ scorer.weight.detach().double().T + scorer.bias.detach().double()
        alpha = s.exp() / s.exp().sum(1, keepdim=True)
        z = []
        for place in range(2):
            known = torch.cat([x, k * e[place]], dim=1) if embedding else x
            question = normalised(plain(augmenter.questions[place], known).reshape(len(batch), 2, 16))
            inputs = {"message": question.float(), **teachers[place].own(batch)}
            answer = teachers[place].teacher.forward_ports(inputs, ["answer"])["answer"].detach().double()
            z.append(plain(module.answer_augmenter.readers[place], answer.reshape(len(batch), -1)))
    if target == "each":
        errors = [(normalised(u) - normalised(each)).square().mean(1) for each in z]
        loss = (alpha[:, 0] * errors[0] + alpha[:, 1] * errors[1]).mean()
    else:
        mixture = alpha[:, :1] * z[0] + alpha[:, 1:] * z[1]
        loss = (normalised(u) - normalised(mixture)).square().mean()
    torch.testing.assert_close(found.parts["committee"].double(), loss, rtol=1e-4, atol=1e-5)
    for place in range(2):
        assert found.monitors[f"importance.{place}"] == pytest.approx(float(alpha[:, place].mean()), rel=1e-4)


def test_every_part_of_every_module_and_both_codecs_learn(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    with committee(two, student, data, committee_config(message_dropout=0.0)) as (methods, teachers):
        methods.loss(student, one_batch(student, data), teachers).loss.backward()
        names = {name: parameter.grad for name, parameter in methods.named_parameters()}
        for name, grad in names.items():
            assert grad is not None, name
            assert grad.abs().sum() > 0, name
        assert any(name.endswith("key") for name in names)
        assert any(name.endswith("embeddings") for name in names)
        for actor in two:
            session = actor.sessions.live()[0]
            for (name, _), gathered in zip(session.codec.named_parameters(), session.gathered, strict=True):
                assert gathered is not None, name
                assert gathered.abs().sum() > 0, name


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_committee_of_two_trains_on_every_modality(tmp_path: Path, modality: str) -> None:
    """With ratings the foundation reads `text` and the complementary teacher `user` and `item`."""
    student, data = student_and_data(modality)
    actors = teachers_of(modality, tmp_path)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    tokens = 4 if modality == "image" else 2  # a convolutional teacher takes messages of a square grid
    with committee(actors, student, data, committee_config(message_tokens=tokens)) as (methods, teachers):
        if modality == "ratings":
            assert [member.ports for member in teachers.members] == [("text",), ("user", "item")]
        watched = train(student, data, methods, teachers)
        assert [member.teacher.steps for member in teachers.members] == [6, 6]
    assert all(math.isfinite(value) for step in watched for value in step.values())
    assert all(step["teacher_grad_norm"] > 0 and step["teacher_grad_norm.1"] > 0 for step in watched)
    assert all(step["importance.0"] + step["importance.1"] == pytest.approx(1.0, abs=1e-6) for step in watched)
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))


@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("tau", [0.0, 0.2, 0.33])
def test_importance_sums_to_one_and_nobody_is_left_without_a_teacher(present: tuple[int, ...], tau: float) -> None:
    scores = (3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found = importance(scores, present, tau)
    torch.testing.assert_close(found.learned.sum(1), torch.ones(200))
    torch.testing.assert_close(found.weights.sum(1), torch.ones(200))
    assert found.kept.any(1).all()
    away = [place for place in range(3) if place not in present]
    assert not found.learned[:, away].any()
    assert not found.kept[:, away].any()
    for row, kept, weights in zip(scores.detach().double(), found.kept, found.weights.detach(), strict=True):
        alpha = row[list(present)].softmax(0)
        stays = (alpha >= tau) | (alpha == alpha.max())
        assert kept[list(present)].tolist() == stays.tolist()
        wanted = torch.where(stays, alpha, 0.0) / alpha[stays].sum()
        torch.testing.assert_close(weights[list(present)].double(), wanted, rtol=1e-4, atol=1e-6)
    found.weights[:, present[0]].sum().backward()
    assert scores.grad is not None
    shared = found.kept.sum(1) > 1
    assert (scores.grad[shared & found.kept[:, present[0]]].abs().sum(1) > 0).all(), "kept rows move alpha"
    assert torch.isfinite(scores.grad).all()


def sharpened(methods: Methods, factor: float = 40.0) -> None:
    """Makes the importances of a fresh committee differ from row to row."""
    with torch.no_grad():
        key = module_of(methods).question_augmenter.key
        assert key is not None
        key.mul_(factor)


def alphas(methods: Methods, student: Any, batch: Batch) -> torch.Tensor:
    lower = student.lower(batch.inputs)
    augmenter = module_of(methods).question_augmenter
    x = mean_state(lower.hidden, lower.mask).float()
    return augmenter.scores(x, augmenter.keys(x)).softmax(1)


def test_rows_that_do_not_matter_are_not_sent(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    student.eval()
    config = committee_config(committee={"tau": 0.4, "filter_after": 1, "weight": 1.0}, w_state_consistency=0.0)
    batch = one_batch(student, data, rows=24)
    with committee(two, student, data, config) as (methods, teachers):
        sharpened(methods)
        kept = alphas(methods, student, batch) >= 0.4
        wanted = kept.sum(0).tolist()
        assert all(0 < count < 24 for count in wanted), "the test needs rows of both kinds"
        first = methods.loss(student, batch, teachers)
        assert first.monitors["teacher_rows_saved"] == 0.0
        assert teachers.account.rows == 48, "before `filter_after` everything is sent"
        first.loss.backward()
        teachers.step(lr=0.0)
        for parameter in methods.parameters():
            parameter.grad = None
        before = [rows_run(actor) for actor in two]
        second = methods.loss(student, batch, teachers)
        second.loss.backward()
        run = [rows_run(actor) - earlier for actor, earlier in zip(two, before, strict=True)]
        assert run == [2.0 * count for count in wanted], "Forward and Backward of the kept rows, counted by the teacher"
        assert teachers.account.rows == 48 + sum(wanted)
        assert teachers.account.rows_saved == 48 - sum(wanted)
        assert [member.rows_saved for member in teachers.members] == [24 - count for count in wanted]
        assert second.monitors["teacher_rows_saved"] == pytest.approx(1 - sum(wanted) / 48)
        assert [second.monitors[f"kept.{place}"] for place in range(2)] == [count / 24 for count in wanted]
        key = module_of(methods).question_augmenter.key
        assert key is not None
        assert key.grad is not None
        assert key.grad.abs().sum() > 0


def test_a_teacher_that_counts_for_no_row_is_not_called(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    config = committee_config(committee={"tau": 0.3, "filter_after": 0, "embedding": False})
    with committee(two, student, data, config) as (methods, teachers):
        scorer: Any = module_of(methods).question_augmenter.scorer
        with torch.no_grad():
            scorer.weight.zero_()
            scorer.bias.copy_(torch.tensor([0.9, 0.1]).log())
        outcome = methods.loss(student, one_batch(student, data), teachers)
        outcome.loss.backward()
        assert [member.teacher.costs[1] for member in teachers.members] == [8, 0]
        assert rows_run(two[1]) == 0
        assert outcome.monitors["importance.1"] == pytest.approx(0.1)
        assert outcome.monitors["kept.1"] == 0.0
        assert outcome.monitors["teacher_rows_saved"] == 0.5
        assert teachers.account.rows_saved == 8
        assert teachers.step(lr=0.1)["teacher_grad_norm.1"] == 0.0


def test_what_is_learned_of_kept_rows_is_as_if_they_were_asked_alone(two: list[TeacherActor]) -> None:
    """The rows that come back from a filtered call are laid in their own places."""
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data, rows=12)
    off = {"w_answer_task": 0.0, "w_answer_labels": 0.0, "w_state_consistency": 0.0, "message_dropout": 0.0}
    whole = committee_config(committee={"tau": 0.0}, **off)
    strict = committee_config(committee={"tau": 0.45, "filter_after": 0}, **off)
    for config in (whole, strict):
        with committee(two, student, data, config) as (methods, teachers):
            sharpened(methods)
            errors = per_row(methods, student, batch, teachers)
            share = alphas(methods, student, batch).double().detach()
            if config is strict:
                share = torch.where(share >= 0.45, share, 0.0)
                share = share / share.sum(1, keepdim=True)
                assert (share == 0).any(0).all(), "each teacher is spared some rows"
            wanted = (share * errors).sum(1).mean()
            found = methods.loss(student, batch, teachers).parts["committee"].double()
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            elsewhere = (share * errors.roll(1, 0)).sum(1).mean()
            assert abs(elsewhere - wanted) > 1e-3, "rows in other places would show"


def per_row(methods: Methods, student: Any, batch: Batch, teachers: Teachers) -> torch.Tensor:
    """|| H^g_u - z_i ||^2 [rows, teachers] in float64, every teacher asked about every row."""
    module = module_of(methods)
    lower = student.lower(batch.inputs)
    upper = student.upper(lower)
    x, u = mean_state(lower.hidden, lower.mask), mean_state(upper.hidden, upper.mask)
    keys = module.question_augmenter.keys(x.float())
    errors = []
    for place in range(2):
        question = module.question_augmenter.question(place, x.float(), keys).detach()
        gate = torch.full((len(batch),), 0.3)
        inputs = {"message": question, "message_gate": gate, **teachers[place].own(batch)}
        answer = teachers[place].teacher.forward_ports(inputs, ["answer"])["answer"].detach().double()
        z = plain(module.answer_augmenter.readers[place], answer.reshape(len(batch), -1))
        errors.append((normalised(u) - normalised(z)).square().mean(1))
    return torch.stack(errors, dim=1).detach()


@pytest.mark.parametrize(
    "switch",
    [
        {"importance": "uniform"},
        {"question": "none"},
        {"embedding": False},
        {"embedding": False, "question": "none"},
        {"importance": "uniform", "question": "none"},
        {"target": "mixture", "answer_labels": False},
    ],
    ids=lambda switch: ",".join(f"{name}={value}" for name, value in switch.items()),
)
def test_ablations_train_all_they_have(two: list[TeacherActor], switch: dict[str, Any]) -> None:
    student, data = student_and_data("text")
    config = committee_config(committee=switch, message_dropout=0.0)
    with committee(two, student, data, config) as (methods, teachers):
        outcome = methods.loss(student, one_batch(student, data), teachers)
        outcome.loss.backward()
        names = {name for name, _ in methods.named_parameters()}
        for name, parameter in methods.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        norms = teachers.step(lr=0.1)
    assert norms["teacher_grad_norm"] > 0
    assert norms["teacher_grad_norm.1"] > 0
    uniform, unasked = switch.get("importance") == "uniform", switch.get("question") == "none"
    assert any("questions" in name for name in names) is not unasked
    assert any("embeddings" in name for name in names) is (switch.get("embedding", True) and not (uniform and unasked))
    assert any("scorer" in name for name in names) is (not switch.get("embedding", True) and not uniform)
    if uniform:
        assert outcome.monitors["importance.0"] == outcome.monitors["importance.1"] == 0.5
    assert ("answer_task" in outcome.parts) is switch.get("answer_labels", True)


def test_the_message_enters_where_inject_says(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    config = committee_config(inject="add", message_tokens=1)
    with committee(two, student, data, config) as (methods, teachers):
        methods.loss(student, one_batch(student, data), teachers).loss.backward()
        assert min(teachers.step(lr=0.1).values()) > 0


def test_a_message_alone_is_sent_where_nothing_asks_about_the_input(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    config = committee_config(answer_from="message", w_state_consistency=0.0)
    with committee(two, student, data, config) as (methods, teachers):
        for member in teachers.members:
            member.ports = ("none of the batch",)
        methods.loss(student, one_batch(student, data), teachers).loss.backward()
        assert min(teachers.step(lr=0.1).values()) > 0


def test_zero_weights_ask_nothing_and_train_bit_equal_to_task_only(two: list[TeacherActor]) -> None:
    weights = dict.fromkeys(("w_answer_task", "w_answer_labels", "w_state_consistency"), 0.0)
    alone, data = student_and_data("text")
    train(alone, data, Methods({}), Teachers())
    other, _ = student_and_data("text")
    with committee(two, other, data, committee_config(committee={"weight": 0.0}, **weights)) as (methods, teachers):
        train(other, data, methods, teachers)
        assert teachers.account.rows == 0
    for (key, ours), (_, theirs) in zip(alone.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key


def test_building_and_asking_leave_the_global_random_state_alone(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    student.eval()
    state = torch.get_rng_state()
    with committee(two, student, data) as (methods, teachers):
        methods.loss(student, one_batch(student, data), teachers)
        first = {name: value.clone() for name, value in methods.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = build_methods(Context(committee_config(), student, (DescribeReply(), DescribeReply()), 0)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in again if not name.endswith("calls"))


@pytest.mark.parametrize(("teachers", "tau"), [(2, 0.5), (3, 0.34), (1, 0.99)])
def test_a_threshold_that_drops_every_teacher_is_refused(teachers: int, tau: float) -> None:
    student, _ = student_and_data("text")
    context = Context(committee_config(committee={"tau": tau}), student, (DescribeReply(),) * teachers, 0)
    if teachers == 1:
        build_methods(context)
        return
    with pytest.raises(
        ConfigError, match=rf"tau: received {tau:g}, a threshold that drops every teacher.*1/{teachers}"
    ):
        build_methods(context)


def test_messages_of_no_fixed_length_are_refused() -> None:
    student, _ = student_and_data("text")
    with pytest.raises(ConfigError, match=r"message_tokens: received 0, expected 1 or more"):
        build_methods(Context(committee_config(message_tokens=0), student, (DescribeReply(),), 0))


def test_a_run_of_a_committee_resumed_equals_an_unbroken_one(tmp_path: Path) -> None:
    """Filtering goes on where it was: what counts the batches is in the checkpoint."""
    fields = {"method__committee": {"tau": 0.49, "filter_after": 5}, "training__lr": 1e-2, "training__max_steps": 8}

    def trained(output: str, steps: int | None, resume: bool) -> dict[str, Any]:
        config = run_config(tmp_path, output, "committee", **fields)
        actors = teachers_of("text", tmp_path, deterministic=True)
        with open_run(config, teachers=actors, progress=quiet(), resume=resume) as trainer:
            trainer.run(steps)
            rows = trainer.position.account.rows_saved
            return {
                "student": trainer.student.state_dict(),
                "sessions": trainer.teachers.export_states(),
                "saved": rows,
            }

    whole = trained("whole", None, False)
    trained("broken", 4, False)
    torch.manual_seed(99)
    resumed = trained("broken", None, True)
    assert whole["saved"] == resumed["saved"] > 0
    assert whole["sessions"] == resumed["sessions"]
    assert all(torch.equal(value, resumed["student"][name]) for name, value in whole["student"].items())


@pytest.mark.parametrize("modality", MODALITIES)
def test_predictions_are_weighed_by_importance_which_learns_from_the_labels(modality: str) -> None:
    """One teacher says what the labels are, the other nothing about them; both are only asked about rows sent to them."""
    student, data = student_and_data(modality)
    actors = [local_teacher(informed_of(modality)), local_teacher(frozen(modality))]
    config = committee_config(committee={"w_labels": 1.0, "importance_from": "labels", "answer_labels": False})
    with committee(actors, student, data, config) as (methods, teachers):
        batch = one_batch(student, data)
        outcome = methods.loss(student, batch, teachers)
        outcome.loss.backward()
        assert {"committee_labels", "importance_task"} <= outcome.parts.keys()
        logits = teachers[0].teacher.observe(teachers[0].own(batch), ["logits"])["logits"]
    task = task_loss(logits.squeeze(-1) if logits.shape[-1] == 1 else logits, batch.labels, batch.labelled)
    torch.testing.assert_close(outcome.parts["importance_task"], task, msg="only one of the two speaks about the task")


def test_the_importance_moves_towards_the_teacher_that_is_right() -> None:
    student, data = student_and_data("text")
    right, wrong = informed_of("text"), informed_of("text")
    for teacher, sign in ((right, 1.0), (wrong, -1.0)):
        with torch.no_grad():
            teacher.model.classifier.weight.zero_()
            teacher.model.classifier.bias.copy_(sign * torch.tensor([4.0, -4.0]))
    train_rows = replace(data.train, labels=torch.where(data.train.labelled, 0, data.train.labels))
    data = replace(data, train=train_rows)  # every label is the one that `right` always says
    config = committee_config(committee={"w_labels": 1.0, "importance_from": "labels"}, w_answer_task=0.0)
    with committee([local_teacher(wrong), local_teacher(right)], student, data, config) as (methods, teachers):
        watched = train(student, data, methods, teachers, steps=30)
    assert watched[-1]["importance.1"] > watched[0]["importance.1"] + 0.1


def test_predictions_of_nobody_are_refused(two: list[TeacherActor]) -> None:
    student, data = student_and_data("text")
    config = committee_config(committee={"w_labels": 1.0})
    with (
        pytest.raises(IncompatibleTeacher, match=r"`logits` of the teacher .*finetune"),
        committee(two, student, data, config),
    ):
        pass
