"""Trained students served as teachers, in this process: they say what they say alone, and they converse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from student_client import InProcessTeacher
from student_client.config import StudentConfig
from student_client.students import build_student
from student_models import States, Student, StudentCard
from task_data.splits import Task, TaskData
from teacher_server.actor import TeacherActor
from teacher_server.families import LayerSpan
from teacher_server.local import local_teacher
from teacher_server.models.loading import load_teacher
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import InvalidSetting, InvalidTensor, ModelLoadError, TeachingError, UnknownPort
from tests.unit.student_client.student_data import split_of, tiny
from tests.unit.teacher_server.served_students import MODALITIES, alone, columns_of, run_folder, wire_inputs
from tests.unit.teacher_server.tiny_models import text_bytes

WIDTH = 6
LAYERS = 3
CELLS = 16


@pytest.fixture(scope="module", params=MODALITIES)
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("runs")
    return lambda modality: root / modality if (root / modality).exists() else run_folder(root / modality, modality)


def observed(actor: TeacherActor, inputs: dict[str, torch.Tensor], *ports: str) -> dict[str, torch.Tensor]:
    with InProcessTeacher(actor, student="a", message_width=WIDTH) as teacher:
        return teacher.observe(inputs, list(ports))


# What it says of itself


def test_the_card(modality: str, folder: Callable[[str], Path]) -> None:
    card, student = local_teacher(folder(modality)).card, alone(folder(modality))
    assert (card.model_name, card.family) == (modality, f"{modality}_student")
    assert (card.layers, card.widths) == (LAYERS, (student.width,) * (LAYERS + 1))
    assert (card.entry, card.exit) == (1, LAYERS)
    assert card.labels == {"text": ("negative", "positive"), "ratings": (), "image": ("a", "b", "c")}[modality]
    head = {"text": "sequence_classification", "ratings": "regression", "image": "image_classification"}[modality]
    own = {"text": ("attention_mask", "input_ids", "text"), "ratings": ("item", "user"), "image": ("image",)}[modality]
    assert (card.heads, card.input_ports[4:]) == ((head,), own)
    assert ("attention_mask" in card.output_ports) is (modality == "text")
    assert {"hidden.<layer>", "hidden.<layer>.mean<tokens>", "logits", "pooled"} < set(card.output_ports)
    assert bool(card.tokenizer_hash) is (modality == "text") is (card.vocabulary_size > 0)


def test_a_run_folder_and_the_students_own_folder_are_one_teacher(modality: str, folder: Callable[[str], Path]) -> None:
    run, own = load_teacher(folder(modality)), load_teacher(str(folder(modality) / "student"))
    assert run.model_hash == own.model_hash
    assert (run.name, own.name) == (modality, "student")
    assert run.model_hash == FrozenTeacher(alone(folder(modality))).model_hash
    assert not any(weight.requires_grad for weight in run.model.parameters())
    changed = alone(folder(modality))
    last = [*changed.parameters(), *changed.buffers()][-1]  # a buffer of the head
    last.data.add_(1e-3)
    assert FrozenTeacher(changed).model_hash != run.model_hash


# What it knows


def test_logits_are_the_students_alone(modality: str, folder: Callable[[str], Path]) -> None:
    student, columns = alone(folder(modality)), columns_of(modality)
    with torch.no_grad():
        expected = student(student.view(columns))
    found = observed(local_teacher(folder(modality)), wire_inputs(columns), "logits")["logits"]
    assert found.shape == (len(expected), 1 if modality == "ratings" else len(student.task.labels))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found.squeeze(-1), expected, atol=1e-6, rtol=1e-6)


def test_states_are_the_students_at_every_cut(modality: str, folder: Callable[[str], Path]) -> None:
    student, columns = alone(folder(modality)), columns_of(modality)
    ports = [f"hidden.{layer}" for layer in range(LAYERS + 1)]
    more = ["attention_mask"] if modality == "text" else []
    actor = local_teacher(folder(modality))
    found = observed(actor, wire_inputs(columns), *ports, "hidden.2.mean2", "pooled", "logits", *more)
    climbed = observed(local_teacher(folder(modality)), wire_inputs(columns), *ports)
    with torch.no_grad():
        start = student.embed(student.view(columns))
        for layer, port in enumerate(ports):
            states = student.run(start, 0, layer)
            real = states.mask
            torch.testing.assert_close(found[port][real], states.hidden[real], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(climbed[port][real], states.hidden[real], atol=1e-6, rtol=1e-6)
            assert not found[port][~real].any()
            assert layer == 0 or not torch.allclose(found[port], found[ports[layer - 1]])
    if modality == "text":
        assert torch.equal(found["attention_mask"], start.mask)
    for row, real in enumerate(start.mask):
        last, third = found["hidden.3"][row, real], found["hidden.2"][row, real]
        half = [third[: -(-len(third) // 2)].mean(0), third[len(third) // 2 :].mean(0)]
        torch.testing.assert_close(found["pooled"][row], last.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["hidden.2.mean2"][row], torch.stack(half), atol=1e-5, rtol=1e-5)


def test_the_second_time_no_model_runs(modality: str, folder: Callable[[str], Path]) -> None:
    teacher = load_teacher(folder(modality))
    runs: list[Any] = []
    teacher.model.output.register_forward_hook(lambda *arguments: runs.append(arguments))
    actor, inputs = local_teacher(teacher, deterministic=True), wire_inputs(columns_of(modality))
    first = observed(actor, inputs, "logits", "hidden.1")
    ran = len(runs)
    again = observed(actor, inputs, "logits", "hidden.1")
    rows = len(first["logits"])
    assert 1 < ran <= rows  # a row that is twice in the batch may be computed once
    assert len(runs) == ran
    assert all(torch.equal(again[port], first[port]) for port in first)


def test_a_text_student_takes_ids_of_its_own_tokenizer_and_cuts_as_it_does(folder: Callable[[str], Path]) -> None:
    student, actor = alone(folder("text")), local_teacher(folder("text"))
    view = student.view(columns_of("text"))
    ids = {"input_ids": view["input_ids"], "attention_mask": view["attention_mask"].long()}
    from_text = observed(actor, wire_inputs(columns_of("text")), "logits")["logits"]
    assert torch.equal(observed(actor, ids, "logits")["logits"], from_text)
    long = ["good film " * 100, "", "neverheard"]
    found = observed(actor, {"text": text_bytes(*long)}, "logits", "attention_mask")
    assert found["attention_mask"].sum(1).tolist() == [32, 1, 2]
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], student(student.view({"text": long})), atol=1e-6, rtol=1e-6)
    shorter = observed(local_teacher(folder("text"), max_tokens=4), {"text": text_bytes(*long)}, "attention_mask")
    assert shorter["attention_mask"].sum(1).tolist() == [4, 1, 2]
    with pytest.raises(InvalidTensor, match="use the tokenizer of this teacher"):
        observed(actor, {"input_ids": torch.tensor([[10_000]])}, "logits")


def test_ids_never_seen_are_one_unknown_user_and_item(folder: Callable[[str], Path]) -> None:
    actor, student = local_teacher(folder("ratings")), alone(folder("ratings"))
    known = student.get_buffer("user_ids")[:1]
    users, items = torch.cat([known, torch.tensor([-3, 11, 2**60])]), torch.tensor([10, 10, 10, 10])
    found = observed(actor, {"user": users[:, None], "item": items[:, None]}, "logits")["logits"]
    assert found[1] == found[2] == found[3] != found[0]
    with torch.no_grad():
        expected = student(student.view({"user": users, "item": items}))
    torch.testing.assert_close(found[:, 0], expected, atol=1e-6, rtol=1e-6)


def test_a_regression_of_text_and_ratings_with_classes(tmp_path: Path) -> None:
    part = split_of({"text": ["good film", "bad film", "good"]}, torch.tensor([2.0, 4.0, 3.0]))
    build_student(StudentConfig(size="tiny"), TaskData(Task("score"), "text", part, part, part)).save(tmp_path / "t")
    text = local_teacher(tmp_path / "t")
    assert (text.card.heads, text.card.labels) == (("regression",), ())
    assert observed(text, wire_inputs(dict(part.columns)), "logits")["logits"].shape == (3, 1)
    ids = {name: torch.tensor([1, 2, 3]) for name in ("user", "item")}
    part = split_of(ids, torch.tensor([0, 1, 0]))
    likes = TaskData(Task("likes", ("no", "yes")), "ratings", part, part, part)
    build_student(StudentConfig(size="tiny"), likes).save(tmp_path / "r")
    ratings = local_teacher(tmp_path / "r")
    assert (ratings.card.heads, ratings.card.labels) == (("classification",), ("no", "yes"))
    assert observed(ratings, wire_inputs(ids), "logits")["logits"].shape == (3, 2)


# The conversation


def answered(student: Student, codec: Any, message: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor:
    """Enc(mean over tokens of layers 1 and 2 on Dec(message)), as plainly as the student allows; a token a row."""
    read = codec.decoder(student.width)(message)
    if states is not None:
        read = states + read
    cells = CELLS if student.inputs == ("image",) else read.shape[1]
    read = read.expand(-1, cells, -1)
    above = student.run(States(read, torch.ones(read.shape[:2], dtype=torch.bool)), 1, LAYERS).hidden
    answer: torch.Tensor = codec.encoder(student.width)(above.mean(1, keepdim=True))
    return answer


@pytest.mark.parametrize("inject", ["replace", "add"])
def test_a_whole_step_of_conversation(modality: str, inject: str, folder: Callable[[str], Path]) -> None:
    teacher, student = load_teacher(folder(modality)), alone(folder(modality))
    actor = local_teacher(teacher)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    columns = columns_of(modality)
    if modality == "text":  # rows of one length, so that the reference needs no mask
        columns = {"text": ["good film", "bad film", "dull plot"]}
    inputs = {name: value[:3] for name, value in wire_inputs(columns).items()}
    message, own = torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_(), None
    options: dict[str, Any] = {"message_width": WIDTH, "message_tokens": 1, "entry": 1, "exit": LAYERS}
    with InProcessTeacher(actor, student="a", inject=inject, **options) as remote:
        found = remote.forward_ports({"message": message, **inputs}, ["answer"])
        if inject == "add":
            own = remote.observe(inputs, ["hidden.1"])["hidden.1"]
        codec = actor.sessions.live()[0].codec
        expected = answered(student, codec, message, own)
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(found["answer"], expected, atol=1e-5 * scale, rtol=1e-5)
        (wanted,) = torch.autograd.grad(expected.pow(3).sum(), message)
        weights = [weight.clone() for weight in codec.parameters()]
        (got,) = torch.autograd.grad(found["answer"].pow(3).sum(), message)
        scale = max(1.0, float(wanted.abs().max()))
        # one token in every cell of an image: only its borders differ, and GroupNorm divides by how little they do
        tolerance = 1e-3 if (modality, inject) == ("image", "replace") else 1e-4
        torch.testing.assert_close(got, wanted, atol=tolerance * scale, rtol=tolerance)
        assert got.abs().sum() > 1e-3
        gathered = [value for name, value in load(remote.export_state()).items() if name.startswith("gathered.")]
        assert len(gathered) == len(weights)
        assert all(grad.abs().sum() > 0 for grad in gathered)
        assert remote.step(lr=0.01) > 0
        assert all(not torch.equal(new, old) for new, old in zip(codec.parameters(), weights, strict=True))
    after = teacher.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(weight.grad is None for weight in teacher.model.parameters())
    assert not teacher.model.training


@pytest.mark.parametrize("answer_from", ["message", "message_and_input"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_every_port_in_every_shape(modality: str, answer_from: str, tokens: int, folder: Callable[[str], Path]) -> None:
    inputs = {name: value[:3] for name, value in wire_inputs(columns_of(modality)).items()}
    message = torch.randn(3, tokens, WIDTH, requires_grad=True)
    ports = ["answer", "answer_state", "teacher_message.enter", "teacher_message.exit", "cross_consistency"]
    options: dict[str, Any] = {"message_width": WIDTH, "message_tokens": tokens, "answer_from": answer_from}
    with InProcessTeacher(local_teacher(folder(modality)), student="a", **options) as teacher:
        found = teacher.forward_ports({"message": message, **inputs}, ports)
        assert [found[port].shape[1] for port in ports[:4]] == [tokens] * 4
        sum(value.sum() for value in found.values()).backward()  # type: ignore[union-attr]
    assert message.grad is not None
    assert (message.grad.abs().sum((1, 2)) > 0).all()


def test_as_many_tokens_as_the_student_sends(modality: str, folder: Callable[[str], Path]) -> None:
    with InProcessTeacher(local_teacher(folder(modality)), student="a", message_width=WIDTH) as teacher:
        answer = teacher(torch.randn(2, 5, WIDTH))
    assert answer.shape == (2, CELLS if modality == "image" else 5, WIDTH)


def test_text_hides_padding_and_ratings_take_tokens_one_by_one(folder: Callable[[str], Path]) -> None:
    span, states = LayerSpan(1, LAYERS), torch.randn(1, 4, 32)
    mask = torch.tensor([[True, True, True, False]])
    text = load_teacher(folder("text"))
    torch.testing.assert_close(text.upper(states, mask, span)[:, :3], text.upper(states[:, :3], None, span))
    assert not torch.allclose(text.upper(states, None, span)[:, :3], text.upper(states[:, :3], None, span), atol=1e-4)
    ratings = load_teacher(folder("ratings"))
    states = states[..., :16]
    alone_ = torch.cat([ratings.upper(token, None, span) for token in states.split(1, dim=1)], dim=1)
    torch.testing.assert_close(ratings.upper(states, mask, span), alone_)


@pytest.mark.parametrize("tokens", [1, 3, 4, 16, 20])
def test_a_message_is_laid_out_over_an_image_students_cells(tokens: int, folder: Callable[[str], Path]) -> None:
    teacher, student = load_teacher(folder("image")), alone(folder("image"))
    states = torch.randn(2, tokens, 16)
    edges = [(cell * tokens // CELLS, -(-(cell + 1) * tokens // CELLS)) for cell in range(CELLS)]
    cells = torch.stack([states[:, start:stop].double().mean(1) for start, stop in edges], dim=1).float()
    if tokens == CELLS:
        assert torch.equal(cells, states)
    expected = student.run(States(cells, torch.ones(2, CELLS, dtype=torch.bool)), 1, LAYERS).hidden
    torch.testing.assert_close(teacher.upper(states, None, LayerSpan(1, LAYERS)), expected, atol=1e-5, rtol=1e-5)
    hidden = torch.ones(2, tokens, dtype=torch.bool)
    hidden[0, 0] = False
    with pytest.raises(InvalidTensor, match="mask hides tokens, and a convolution sees all; send messages without"):
        teacher.upper(states, hidden, LayerSpan(1, LAYERS))


@pytest.mark.parametrize("grid", [(5, 12), (8, 3)])
def test_an_image_need_not_be_square(tmp_path: Path, grid: tuple[int, int]) -> None:
    part = split_of({"image": torch.randint(0, 256, (4, 2, *grid), dtype=torch.uint8)}, torch.tensor([0, 1, 0, 1]))
    student = build_student(StudentConfig(size="tiny"), TaskData(Task("t", ("a", "b")), "image", part, part, part))
    student.save(tmp_path)
    options: dict[str, Any] = {"message_width": WIDTH, "message_tokens": 1}
    with InProcessTeacher(local_teacher(tmp_path), student="a", **options) as teacher:
        logits = teacher.observe(dict(part.columns), ["logits"])["logits"]  # type: ignore[arg-type]
        assert teacher(torch.randn(4, 1, WIDTH)).shape == (4, 1, WIDTH)
    with torch.no_grad():
        expected = student.eval()(student.view(part.columns))
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(modality: str, dtype: str, folder: Callable[[str], Path]) -> None:
    inputs = wire_inputs(columns_of(modality))
    ports = ("hidden.3", "logits")
    full, half = (observed(local_teacher(folder(modality), dtype=kind), inputs, *ports) for kind in ("float32", dtype))
    for port in ports:
        assert (half[port] - full[port]).norm() / full[port].norm() < 0.05
        assert not torch.equal(half[port], full[port])


# What is bad

U8 = torch.uint8
IDS = torch.tensor([[10], [20]])

BAD_INPUTS: dict[str, tuple[str, dict[str, torch.Tensor], type[TeachingError], str]] = {
    "image side": (
        "image",
        {"image": torch.zeros(2, 1, 9, 8, dtype=U8)},
        InvalidTensor,
        r"`image` is \[2, 1, 9, 8\] uint8, expected \[batch, 1, 8, 8\] uint8, what this student was trained on",
    ),
    "image channels": ("image", {"image": torch.zeros(2, 3, 8, 8, dtype=U8)}, InvalidTensor, r"expected \[batch, 1, 8"),
    "image dtype": ("image", {"image": torch.zeros(2, 1, 8, 8)}, InvalidTensor, r"is \[2, 1, 8, 8\] float32, expected"),
    "image flat": ("image", {"image": torch.zeros(2, 64, dtype=U8)}, InvalidTensor, r"is \[2, 64\] uint8, expected"),
    "pixels": (
        "image",
        {"pixel_values": torch.zeros(2, 1, 8, 8)},
        UnknownPort,
        "'pixel_values' is unknown; this teach",
    ),
    "no item": ("ratings", {"user": IDS}, InvalidTensor, "no `item` received; send item and user"),
    "ids int32": (
        "ratings",
        {"user": IDS.int(), "item": IDS},
        InvalidTensor,
        r"`user` is \[2, 1\] int32, expected \[bat",
    ),
    "ids float": (
        "ratings",
        {"user": IDS, "item": IDS.float()},
        InvalidTensor,
        r"`item` is \[2, 1\] float32, expected",
    ),
    "ids wide": (
        "ratings",
        {"user": IDS.T, "item": IDS[:1]},
        InvalidTensor,
        r"is \[1, 2\] int64, expected \[batch, 1\]",
    ),
    "ids flat": (
        "ratings",
        {"user": IDS[:, 0], "item": IDS[:, 0]},
        InvalidTensor,
        r"shape \[2\], expected \[rows, ...\]",
    ),
    "rows": ("ratings", {"user": IDS, "item": IDS[:1]}, InvalidTensor, "different numbers of rows"),
    "text": ("ratings", {"text": text_bytes("a")}, UnknownPort, "'text' is unknown; this teacher takes .*item, user"),
    "user": ("text", {"user": IDS}, UnknownPort, "'user' is unknown; this teacher takes .*input_ids, text"),
    "bytes": ("text", {"text": text_bytes("ü")[:, :1]}, InvalidTensor, "row 0 of `text` is no UTF-8"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_refused_with_a_sentence(case: str, folder: Callable[[str], Path]) -> None:
    modality, inputs, error, sentence = BAD_INPUTS[case]
    actor = local_teacher(folder(modality))
    with pytest.raises(error, match=sentence):
        observed(actor, inputs, "logits")
    assert observed(actor, wire_inputs(columns_of(modality)), "logits")["logits"].isfinite().all()


@pytest.mark.parametrize("case", [name for name, (_, _, error, _) in BAD_INPUTS.items() if error is UnknownPort])
def test_ports_of_another_modality_are_refused_by_the_model_too(case: str, folder: Callable[[str], Path]) -> None:
    modality, inputs, _, _ = BAD_INPUTS[case]
    with pytest.raises(UnknownPort, match=f"this teacher does not read `{next(iter(inputs))}`"):
        load_teacher(folder(modality)).prepare(inputs)


def test_nothing_and_no_rows(modality: str, folder: Callable[[str], Path]) -> None:
    teacher = load_teacher(folder(modality))
    with pytest.raises(InvalidTensor, match=r"no `\w+` received; send"):
        teacher.prepare({})
    none = {name: value[:0] for name, value in wire_inputs(columns_of(modality)).items()}
    with pytest.raises(InvalidTensor, match="expected"):
        teacher.prepare(none)


@pytest.mark.parametrize("kind", ["ratings", "image"])
def test_a_grid_and_a_single_token_have_no_prefix(kind: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidSetting, match="inject 'prefix' needs a sequence"):
        InProcessTeacher(local_teacher(folder(kind)), student="a", message_width=WIDTH, inject="prefix").enroll()


def test_broken_folders(modality: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder(modality), run)
    student = run / "student"
    for path in sorted(student.iterdir()):
        if path.name in ("config.json", "tokenizer_config.json"):
            continue  # for Hugging Face's readers alone
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelLoadError, match=path.name):
            load_teacher(run)
        path.unlink()
        with pytest.raises(ModelLoadError, match=path.name):
            load_teacher(run)
        path.write_bytes(whole)
    card = json.loads((student / "student.json").read_text())
    for sizes in ({"width": card["sizes"]["width"] * 2}, {"width": -1}, {"layers": 7}):
        (student / "student.json").write_text(json.dumps(card | {"sizes": card["sizes"] | sizes}))
        with pytest.raises(ModelLoadError, match=r"(train or save it|save the student) again"):
            load_teacher(run)
    StudentCard(**card | {"sizes": {"layers": 2}}).write(student)
    with pytest.raises(ModelLoadError, match=r"does not load \(KeyError: '\w+'\); train or save it again"):
        load_teacher(run)
    (student / "student.json").write_text(json.dumps(card | {"modality": "sound"}))
    with pytest.raises(ModelLoadError, match="is no student's card"):
        load_teacher(run)


def test_a_run_that_has_saved_no_student_yet(folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder("text") / "config.json").read_text())
    with pytest.raises(
        ModelLoadError, match=r"names no model_type; give a model, or a run that has saved its `student`"
    ):
        load_teacher(tmp_path)
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelLoadError, match=r"student\.json is missing"):
        load_teacher(tmp_path)


def test_pickled_weights_are_not_read(folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder("image"), tmp_path / "run")
    weights = tmp_path / "run" / "student" / "model.safetensors"
    torch.save(alone(folder("image")).state_dict(), weights)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be loaded"):
        load_teacher(tmp_path / "run")


def test_a_live_student_can_be_handed_over() -> None:
    student, data = tiny("ratings", dropout=0.5)
    actor = local_teacher(FrozenTeacher(student.train(), "mine"))
    assert actor.card.model_name == "mine"
    assert not student.training
    first, again = (observed(actor, wire_inputs(dict(data.test.columns)), "logits")["logits"] for _ in range(2))
    assert torch.equal(first, again)
