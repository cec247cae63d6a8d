"""The baselines on tiny students of every modality against real teachers in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client import losses
from student_client.codecs import CodecShape, StudentCodec
from student_client.losses.masks import pooled
from student_client.methods import Context, Method, Methods, build_methods
from student_client.methods.method import Seen
from student_client.methods.pkd import patient_layers
from student_client.methods.projection import linear, masked_mean, segment_means
from student_client.teachers.teachers import Teachers
from student_client.training.runs import open_run
from student_models import States, Student
from task_data import Batch, TaskData
from teacher_server.actor import TeacherActor
from teacher_server.local import local_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ConfigError, IncompatibleTeacher
from teaching_protocol.verbs import DescribeReply
from tests.unit.student_client.method_setup import MODALITIES, enrolled, one_batch, settings, student_and_data
from tests.unit.student_client.run_setup import quiet, run_config
from tests.unit.student_client.student_data import data_of
from tests.unit.teacher_server.tiny_models import tiny_model, tiny_tokenizer

ZERO_WEIGHTS: dict[str, dict[str, float]] = {
    "soft_labels": {"weight": 0.0},
    "fitnets": {"weight": 0.0},
    "rkd": {"w_distance": 0.0, "w_angle": 0.0},
    "pkd": {"weight": 0.0},
    "minilm": {"weight": 0.0},
    "averaged": {"w_labels": 0.0, "w_features": 0.0},
}
BASELINES = tuple(ZERO_WEIGHTS)
OF_FEATURES = ("fitnets", "rkd", "pkd", "minilm", "averaged")


def informed(labels: Sequence[str], model_type: str = "bert") -> FrozenTeacher:
    """A teacher with a head for these classes, or for a number where there are none."""
    model = tiny_model(model_type)
    with torch.random.fork_rng():
        torch.manual_seed(len(labels))
        model.classifier = torch.nn.Linear(32, max(1, len(labels)))
    model.config.num_labels = max(1, len(labels))
    if labels:
        model.config.id2label = dict(enumerate(labels))
    return FrozenTeacher(model, tokenizer=tiny_tokenizer() if model_type == "bert" else None)


def informed_of(modality: str) -> FrozenTeacher:
    return informed(data_of(modality).task.labels, "vit" if modality == "image" else "bert")


def headless() -> FrozenTeacher:
    return FrozenTeacher(tiny_model("bert", head=False), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def actors() -> dict[str, TeacherActor]:
    return {modality: local_teacher(informed_of(modality)) for modality in MODALITIES}


@pytest.fixture(scope="module")
def card(actors: dict[str, TeacherActor]) -> DescribeReply:
    return actors["text"].card


def unlabelled(batch: Batch) -> Batch:
    """A batch from which the task loss learns nothing."""
    return replace(batch, labelled=torch.zeros_like(batch.labelled))


def seen_by(student: Student, batch: Batch) -> Seen:
    states = [student.embed(batch.inputs)]
    for layer in range(student.layers):
        states.append(student.run(states[-1], layer, layer + 1))
    return Seen(student, states, student.head(states[-1]))


def terms_of(methods: Methods, name: str, seen: Seen, batch: Batch, teachers: Teachers) -> dict[str, torch.Tensor]:
    method = methods.methods[name]
    assert isinstance(method, Method)
    return {part: term for part, (_, term) in method.terms(seen, batch, teachers).losses.items()}


# --- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name", BASELINES)
def test_each_baseline_teaches_the_student_without_labels(
    actors: dict[str, TeacherActor], name: str, modality: str
) -> None:
    config = settings(names=(name,))
    student, data = student_and_data(modality)
    student.eval()
    batch = unlabelled(one_batch(student, data))
    with enrolled(actors[modality], config, student, data) as (methods, teachers):
        optimizer = torch.optim.Adam([*student.parameters(), *methods.parameters()], lr=3e-3)
        values = []
        for _ in range(15):
            outcome = methods.loss(student, batch, teachers)
            optimizer.zero_grad()
            outcome.loss.backward()
            optimizer.step()
            values.append(outcome.loss.item())
    assert outcome.parts["task"].item() == 0.0
    for key, parameter in methods.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    learning = [key for key, value in student.named_parameters() if value.grad is not None and value.grad.any()]
    assert any(key.startswith(("body", "blocks", "join", "stem")) for key in learning), "more than the head learns"
    assert values[-1] < 0.95 * values[0]


@pytest.mark.parametrize("name", BASELINES)
def test_the_loss_is_the_task_and_the_weighted_terms(actors: dict[str, TeacherActor], name: str) -> None:
    weights = {key: 0.25 * place for place, key in enumerate(ZERO_WEIGHTS[name], start=1)}
    config = settings(**{"names": (name,), name: weights})
    student, data = student_and_data("text")
    with enrolled(actors["text"], config, student, data) as (methods, teachers):
        outcome = methods.loss(student, one_batch(student, data), teachers)
    parts = {key: value.item() for key, value in outcome.parts.items()}
    task = parts.pop("task")
    assert len(parts) == len(weights)
    total = task + sum(weight * part for weight, part in zip(weights.values(), parts.values(), strict=True))
    assert outcome.loss.item() == pytest.approx(total, rel=1e-5)


def train(student: Student, data: TaskData, methods: Methods, teachers: Teachers) -> None:
    torch.manual_seed(7)  # dropout
    optimizer = torch.optim.AdamW([*student.parameters(), *methods.parameters()], lr=1e-2)
    for epoch in range(4):
        outcome = methods.loss(student, one_batch(student, data, epoch=epoch), teachers)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name", BASELINES)
def test_zero_weights_train_bit_equal_to_task_only_and_ask_nothing(
    actors: dict[str, TeacherActor], name: str, modality: str
) -> None:
    alone, data = student_and_data(modality)
    train(alone, data, Methods({}), Teachers())
    other, _ = student_and_data(modality)
    config = settings(**{"names": (name,), name: ZERO_WEIGHTS[name]})
    with enrolled(actors[modality], config, other, data) as (methods, teachers):
        assert methods.observed == {}
        train(other, data, methods, teachers)
        assert teachers.account.rows == 0
    for (key, ours), (_, theirs) in zip(alone.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", OF_FEATURES)
def test_padding_of_the_student_changes_no_term(actors: dict[str, TeacherActor], name: str) -> None:
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    seen = seen_by(student, batch)
    assert not seen.upper.mask.all(), "there is padding"

    def stirred(states: States) -> States:
        wider = torch.nn.functional.pad(states.mask, (0, 3))
        hidden = torch.nn.functional.pad(states.hidden, (0, 0, 0, 3))
        return States(hidden.masked_fill(~wider[..., None], torch.nan), wider)

    other = replace(seen, states=[stirred(states) for states in seen.states])
    with enrolled(actors["text"], settings(names=(name,)), student, data) as (methods, teachers):
        clean, dirty = (terms_of(methods, name, each, batch, teachers) for each in (seen, other))
    assert clean.keys() == dirty.keys()
    for part in clean:
        torch.testing.assert_close(clean[part], dirty[part], msg=part)


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_of_one_row_gives_finite_gradients(actors: dict[str, TeacherActor], name: str) -> None:
    for modality in MODALITIES:
        student, data = student_and_data(modality)
        with enrolled(actors[modality], settings(names=(name,)), student, data) as (methods, teachers):
            outcome = methods.loss(student, one_batch(student, data, rows=1), teachers)
            outcome.loss.backward()
        assert outcome.loss.isfinite()
        assert all(value.grad.isfinite().all() for value in student.parameters() if value.grad is not None)


@pytest.mark.parametrize("name", ["fitnets", "pkd", "averaged"])
def test_projections_follow_from_the_seed_and_move_no_random_state(card: DescribeReply, name: str) -> None:
    student, _ = student_and_data("ratings")  # narrower than the teacher
    state = torch.get_rng_state()
    first, again, other = (
        build_methods(Context(settings(names=(name,)), student, (card, card), seed)).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert first
    for key, value in first.items():
        assert torch.equal(value, again[key])
        assert not torch.equal(value, other[key])
        assert value.isfinite().all()


# --- what is served ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing", "named"),
    [
        ("soft_labels", "logits", "`logits`"),
        ("fitnets", "hidden.<layer>.mean<tokens>", r"'hidden\.4\.mean1'"),
        ("rkd", "pooled", "'pooled'"),
        ("pkd", "hidden.<layer>.mean<tokens>", r"'hidden\.2\.mean1'"),
        ("minilm", "hidden.<layer>.mean<tokens>", r"'hidden\.4\.mean8'"),
        ("averaged", "hidden.<layer>.mean<tokens>", r"'hidden\.4\.mean1'"),
    ],
)
def test_a_teacher_without_the_port_is_refused(card: DescribeReply, name: str, missing: str, named: str) -> None:
    student, _ = student_and_data("text")
    assert missing in card.output_ports
    less = replace(card, output_ports=tuple(port for port in card.output_ports if port != missing))
    with pytest.raises(IncompatibleTeacher, match=named):
        build_methods(Context(settings(names=(name,)), student, (less,), 0))


@pytest.mark.parametrize(
    ("name", "fields", "error", "named"),
    [
        ("fitnets", {"layer": 5}, IncompatibleTeacher, r"'hidden\.5\.mean1'.*layers 0 to 4"),
        ("minilm", {"layer": 5}, IncompatibleTeacher, r"'hidden\.5\.mean8'.*layers 0 to 4"),
        ("minilm", {"tokens": 10_000}, IncompatibleTeacher, r"'hidden\.4\.mean10000'.*tokens"),
        ("minilm", {"relation_heads": 3}, ConfigError, "relation_heads: received 3.*width 32 and of the teacher's 32"),
    ],
)
def test_settings_the_teacher_cannot_meet_are_refused(
    card: DescribeReply, name: str, fields: dict[str, Any], error: type[Exception], named: str
) -> None:
    student, _ = student_and_data("text")
    with pytest.raises(error, match=named):
        build_methods(Context(settings(**{"names": (name,), name: fields}), student, (card,), 0))


def test_pkd_refuses_a_student_of_one_layer(card: DescribeReply) -> None:
    student, _ = student_and_data("text")
    student.layers = 1
    with pytest.raises(ConfigError, match=r"1 layers, expected 2 or more.*fitnets"):
        build_methods(Context(settings(names=("pkd",)), student, (card,), 0))


@pytest.mark.parametrize(
    ("modality", "teacher", "received"),
    [
        ("text", headless, r"no head, expected the labels negative, positive"),
        ("text", lambda: FrozenTeacher(tiny_model("llama")), "causal_lm, expected the labels negative, positive"),
        ("text", lambda: informed(("positive", "negative")), "labels positive, negative, expected the labels negative"),
        ("text", lambda: informed([f"c{n}" for n in range(20)]), r"c10, c11 and 8 more, expected"),
        ("ratings", headless, "no head, expected one predicted number"),
        ("ratings", lambda: FrozenTeacher(tiny_model("llama")), "causal_lm, expected one predicted number"),
        ("ratings", lambda: informed(("a", "b", "c")), "labels a, b, c, expected one predicted number"),
        ("image", lambda: informed(("a", "b"), "vit"), "labels a, b, expected the labels a, b, c"),
    ],
    ids=["headless", "decoder", "order", "many", "number-headless", "number-decoder", "number-classes", "image"],
)
def test_soft_labels_need_a_head_for_the_task(modality: str, teacher: Any, received: str) -> None:
    student, _ = student_and_data(modality)
    other = local_teacher(teacher()).card
    with pytest.raises(IncompatibleTeacher, match=rf"`logits`.*{received}.*teacher-server finetune --model .* --data"):
        build_methods(Context(settings(names=("soft_labels",)), student, (other,), 0))
    only_labels = settings(names=("averaged",), averaged={"w_features": 0.0})
    with pytest.raises(IncompatibleTeacher, match=received):
        build_methods(Context(only_labels, student, (other, other), 0))


# --- the equations -------------------------------------------------------------------------------------------------


def plain_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[real].mean(0) for row, real in zip(hidden, mask.bool(), strict=True)])


def test_each_term_is_its_equation(actors: dict[str, TeacherActor]) -> None:
    """What each compares, taken anew from the teacher's raw states."""
    names = ("soft_labels", "fitnets", "rkd", "pkd", "minilm")
    config = settings(names=names, minilm={"tokens": 3, "relation_heads": 2}, soft_labels={"temperature": 3.0})
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    seen = seen_by(student, batch)
    with enrolled(actors["text"], config, student, data) as (methods, teachers):
        found = methods.loss(student, batch, teachers).parts
        ports = ["hidden.2", "hidden.4", "attention_mask", "logits", "pooled", "hidden.4.mean3"]
        theirs = teachers.first.fetch(batch, ports)
    states, mask = seen.upper.hidden, seen.upper.mask
    ours, hint = plain_mean(states, mask), plain_mean(theirs["hidden.4"], theirs["attention_mask"])
    middle = plain_mean(seen.states[1].hidden, mask), plain_mean(theirs["hidden.2"], theirs["attention_mask"])
    segments = segment_means(States(theirs["hidden.4"], theirs["attention_mask"]), 3)
    torch.testing.assert_close(segments.hidden, theirs["hidden.4.mean3"], msg="both sides cut the same segments")
    wanted = {
        "soft_labels": losses.soft_label_kl(seen.outputs, theirs["logits"], temperature=3.0),
        "fitnets": losses.hint_error(methods.methods["fitnets"].regressor(ours), hint),
        "rkd_distance": losses.distance_relation(ours, theirs["pooled"]),
        "rkd_angle": losses.angle_relation(ours, theirs["pooled"]),
        "pkd": losses.patient_error([middle[0]], [middle[1]]),  # the widths are the same
        "minilm": losses.self_relation_kl(segment_means(seen.upper, 3).hidden, segments.hidden, heads=2),
    }
    assert {"task", *wanted} == set(found)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach(), msg=name)


def test_fitnets_takes_the_layer_and_the_tap_of_its_settings(actors: dict[str, TeacherActor]) -> None:
    config = settings(names=("fitnets",), fitnets={"layer": 1, "at": "lower", "normalise": False})
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    seen = seen_by(student, batch)
    with enrolled(actors["text"], config, student, data) as (methods, teachers):
        assert methods.observed == {0: ("hidden.1.mean1",)}
        (found,) = terms_of(methods, "fitnets", seen, batch, teachers).values()
        theirs = teachers.first.fetch(batch, ["hidden.1", "attention_mask"])
    guided = methods.methods["fitnets"].regressor(plain_mean(seen.lower.hidden, seen.lower.mask))
    hint = plain_mean(theirs["hidden.1"], theirs["attention_mask"])
    torch.testing.assert_close(found, ((guided - hint) ** 2).mean())


def test_minilm_relates_the_rows_of_the_batch_where_the_student_has_one_token(actors: dict[str, TeacherActor]) -> None:
    student, data = student_and_data("ratings")
    student.eval()
    batch = one_batch(student, data)
    seen = seen_by(student, batch)
    with enrolled(actors["ratings"], settings(names=("minilm",)), student, data) as (methods, teachers):
        assert methods.observed == {0: ("hidden.4.mean1",)}
        (found,) = terms_of(methods, "minilm", seen, batch, teachers).values()
        theirs = teachers.first.fetch(batch, ["hidden.4.mean1"])["hidden.4.mean1"]
    ours = seen.upper.hidden[:, 0]
    wanted = losses.self_relation_kl(ours[None], theirs[:, 0][None], heads=4)
    torch.testing.assert_close(found, wanted)
    assert found > 0


@pytest.mark.parametrize("name", ["soft_labels", "averaged"])
def test_a_regression_learns_the_teachers_number(actors: dict[str, TeacherActor], name: str) -> None:
    student, data = student_and_data("ratings")
    student.eval()
    batch = one_batch(student, data)
    seen = seen_by(student, batch)
    with enrolled(actors["ratings"], settings(names=(name,)), student, data) as (methods, teachers):
        found = terms_of(methods, name, seen, batch, teachers)
        theirs = teachers.first.fetch(batch, ["logits"])["logits"]
    assert theirs.shape == (len(batch), 1)
    part = {"soft_labels": "soft_labels", "averaged": "averaged_labels"}[name]
    torch.testing.assert_close(found[part], ((seen.outputs - theirs[:, 0]) ** 2).mean())


# --- several teachers ----------------------------------------------------------------------------------------------


def test_averaged_asks_every_teacher_and_takes_labels_of_those_that_have_them() -> None:
    """Of three: one with the head, one without any, and one with the head again but other weights."""
    student, data = student_and_data("text")
    student.eval()
    batch = one_batch(student, data)
    seen = seen_by(student, batch)
    third = informed(data.task.labels)
    with torch.no_grad():
        third.model.classifier.weight.neg_()
    teachers_of = [local_teacher(each) for each in (informed(data.task.labels), headless(), third)]
    with enrolled(teachers_of, settings(names=("averaged",)), student, data) as (methods, teachers):
        method = methods.methods["averaged"]
        assert method.asks_all
        assert methods.observed == {
            0: ("logits", "hidden.4.mean1"),
            1: ("hidden.4.mean1",),
            2: ("logits", "hidden.4.mean1"),
        }
        found = terms_of(methods, "averaged", seen, batch, teachers)
        told = [teachers[place].fetch(batch, ports) for place, ports in methods.observed.items()]
    probabilities = torch.stack([(told[place]["logits"] / 2).softmax(-1) for place in (0, 2)]).mean(0)
    ours = (seen.outputs / 2).log_softmax(-1)
    divergence = (probabilities * (probabilities.log() - ours)).sum(-1).mean() * 4
    torch.testing.assert_close(found["averaged_labels"], divergence)
    mean = masked_mean(seen.upper)
    errors = [
        losses.hint_error(regressor(mean), answer["hidden.4.mean1"][:, 0])
        for regressor, answer in zip(method.regressors, told, strict=True)
    ]
    torch.testing.assert_close(found["averaged_features"], sum(errors) / 3)
    assert not torch.equal(method.regressors[0].weight, method.regressors[1].weight)


def test_averaged_without_any_head_learns_features_alone() -> None:
    student, data = student_and_data("text")
    with enrolled(local_teacher(headless()), settings(names=("averaged",)), student, data) as (methods, teachers):
        outcome = methods.loss(student, one_batch(student, data), teachers)
    assert set(outcome.parts) == {"task", "averaged_features"}


def test_averaged_labels_alone_ask_only_teachers_that_have_them() -> None:
    student, data = student_and_data("text")
    config = settings(names=("averaged",), averaged={"w_features": 0.0})
    actors = [local_teacher(headless()), local_teacher(informed(data.task.labels))]
    with enrolled(actors, config, student, data) as (methods, teachers):
        assert methods.observed == {1: ("logits",)}
        outcome = methods.loss(student, one_batch(student, data), teachers)
        assert [member.teacher.costs[1] for member in teachers.members] == [0, 8]
    assert set(outcome.parts) == {"task", "averaged_labels"}


# --- in a run ------------------------------------------------------------------------------------------------------


def test_a_run_observes_ahead_once_a_batch_for_all_methods(tmp_path: Path) -> None:
    names = ",".join(name for name in BASELINES if name != "averaged")
    config = run_config(tmp_path, method=names, method__pkd={"layers": "last"})
    with open_run(config, teachers=[local_teacher(informed(("no", "yes")))], progress=quiet()) as trainer:
        ports = ("logits", "hidden.4.mean1", "pooled", "hidden.3.mean1", "hidden.4.mean8")
        assert trainer.method.observed == {0: ports}
        batch = trainer.batches.next()
        assert tuple(batch.known[0]) == ports
        trainer.batches.go_to(replace(trainer.batches.place, batch=0))
        asked = trainer.teachers.account.rows
        result = trainer.run()
        assert trainer.teachers.account.rows - asked == 20 * 8, "what was fetched ahead is not asked again"
    assert result is not None
    assert result.method == names.replace(",", "+")


def test_a_run_of_averaged_teachers_asks_each_once_a_batch(tmp_path: Path) -> None:
    config = run_config(tmp_path, method="averaged")
    teachers = [local_teacher(informed(("no", "yes"))), local_teacher(headless())]
    with open_run(config, teachers=teachers, progress=quiet()) as trainer:
        assert trainer.run() is not None
        assert [member.teacher.costs[1] for member in trainer.teachers.members] == [160, 160]
        assert trainer.teachers.export_states() == (), "no codec is trained"


def test_a_run_is_refused_before_a_session_is_opened(tmp_path: Path) -> None:
    actor = local_teacher(informed(("yes", "no")))
    with (
        pytest.raises(IncompatibleTeacher, match="labels yes, no, expected the labels no, yes, in this order"),
        open_run(run_config(tmp_path, method="soft_labels"), teachers=[actor], progress=quiet()),
    ):
        pass
    assert not actor.sessions.live()


# --- what they share -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "skip", "last"),
    [
        (6, 12, [2, 4, 6, 8, 10], [7, 8, 9, 10, 11]),
        (3, 12, [4, 8], [10, 11]),
        (4, 6, [1, 3, 4], [3, 4, 5]),
        (2, 2, [1], [1]),
        (6, 2, [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
        (2, 1, [1], [1]),
    ],
)
def test_patient_layers(student: int, teacher: int, skip: list[int], last: list[int]) -> None:
    assert list(patient_layers(student, teacher, "skip")) == skip
    assert list(patient_layers(student, teacher, "last")) == last


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_segment_means_are_those_of_the_codec_and_of_a_plain_loop(count: int) -> None:
    hidden, lengths = torch.randn(4, 6, 5), torch.tensor([6, 4, 1, 0])
    mask = torch.arange(6)[None] < lengths[:, None]
    states = States(hidden.masked_fill(~mask[..., None], torch.nan), mask)
    found = segment_means(states, count)
    for row, n in enumerate(lengths.tolist()):
        assert found.mask[row].tolist() == [n > 0] * count
        for j in range(count):
            start, stop = j * n // count, -((j + 1) * n // -count)
            wanted = hidden[row, start:stop].mean(0) if n else torch.zeros(5)
            torch.testing.assert_close(found.hidden[row, j], wanted)
    codec = StudentCodec(CodecShape(5, 4, count, "mean")).pool(states)
    torch.testing.assert_close(found.hidden, codec.hidden)
    if count == 1:
        assert torch.equal(found.hidden[:, 0], masked_mean(states))
        assert torch.equal(masked_mean(states), pooled(states.hidden, mask))


def test_a_linear_layer_starts_as_pytorchs_own() -> None:
    layer = linear(400, 300, torch.Generator().manual_seed(0))
    usual = torch.nn.Linear(400, 300)
    for name in ("weight", "bias"):
        ours, theirs = getattr(layer, name).detach(), getattr(usual, name).detach()
        assert ours.abs().max() <= 1 / 20
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
