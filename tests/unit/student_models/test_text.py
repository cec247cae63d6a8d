"""The text student: its tokenizer, its masks and its Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from student_client.config import StudentConfig
from student_client.students import build_student
from student_models import TextStudent
from task_data.splits import Task, TaskData
from tests.unit.student_client.student_data import split_of, text_data, texts, tiny


def test_the_saved_text_student_opens_with_plain_transformers(tmp_path: Path) -> None:
    student, data = tiny("text")
    student.eval().save(tmp_path)
    view = student.view(data.test.columns)
    body = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    tokens = AutoTokenizer.from_pretrained(tmp_path)(list(data.test.columns["text"]), padding=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], view["input_ids"])
    assert torch.equal(tokens["attention_mask"].bool(), view["attention_mask"])
    hidden = body(input_ids=view["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    exit_ = student.upper(student.lower(view))
    torch.testing.assert_close(hidden[exit_.mask], exit_.hidden[exit_.mask])


def test_the_vocabulary_is_the_training_splits_alone() -> None:
    data = text_data()
    more = split_of({"text": ["unheard unheard of"] * 5}, torch.zeros(5, dtype=torch.int64))
    plain = build_student(StudentConfig(size="tiny"), data)
    other = build_student(StudentConfig(size="tiny"), TaskData(data.task, "text", data.train, more, more))
    assert isinstance(plain, TextStudent)
    assert isinstance(other, TextStudent)
    assert plain.tokenizer.to_str() == other.tokenizer.to_str()
    assert other.tokenizer.token_to_id("unheard") is None


def test_unlabelled_rows_are_in_the_vocabulary_and_labels_are_not_needed() -> None:
    rows = ["seen seen", "hidden hidden", "hidden once"]
    train_split = split_of({"text": rows}, torch.zeros(3, dtype=torch.int64), torch.tensor([True, False, False]))
    student = build_student(StudentConfig(size="tiny"), TaskData(Task("t", ("a", "b")), "text", *[train_split] * 3))
    assert isinstance(student, TextStudent)
    words = student.tokenizer.get_vocab()
    assert {"seen", "hidden"} < set(words)
    assert "once" not in words
    assert sorted(words.values()) == list(range(len(words)))


def test_words_of_equal_count_are_ordered_by_the_alphabet() -> None:
    rows = ["pear apple fig", "fig apple pear", "kiwi kiwi kiwi"]
    one = split_of({"text": rows}, torch.zeros(3, dtype=torch.int64))
    two = split_of({"text": rows[::-1]}, torch.zeros(3, dtype=torch.int64))
    for part in (one, two):
        student = build_student(StudentConfig(size="tiny"), TaskData(Task("t", ("a", "b")), "text", part, part, part))
        assert isinstance(student, TextStudent)
        words = student.tokenizer.get_vocab()
        assert sorted(words, key=words.__getitem__)[3:] == ["kiwi", "apple", "fig", "pear"]


def test_texts_are_cut_lower_cased_and_never_empty() -> None:
    student, _ = tiny("text", max_tokens=4)
    rows = ["GOOD Film", "good film", "", "good " * 50, "neverseen"]
    view = student.view({"text": rows})
    assert view["input_ids"].shape == (5, 4)
    assert torch.equal(view["input_ids"][0], view["input_ids"][1])
    assert view["attention_mask"].sum(1).tolist() == [3, 3, 1, 4, 2]
    assert student.eval()(view).isfinite().all()
    assert student.view({"text": []})["input_ids"].shape == (0, 1)


def test_padding_changes_no_output() -> None:
    student, data = tiny("text")
    view = student.eval().view(data.test.columns)
    padded = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in view.items()}
    padded["input_ids"][:, -5:] = 3
    torch.testing.assert_close(student(padded), student(view))


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    student, data = tiny("text")
    view = student.view(data.test.columns)
    assert not torch.equal(student.train()(view), student(view))
    assert torch.equal(student.eval()(view), student(view))


def test_a_text_regression_starts_at_the_mean_of_the_labelled_rows() -> None:
    part = split_of(
        {"text": texts(4, 0)}, torch.tensor([2.0, 4.0, 100.0, 3.0]), torch.tensor([True, True, False, True])
    )
    student = build_student(StudentConfig(size="tiny"), TaskData(Task("score"), "text", part, part, part))
    assert isinstance(student, TextStudent)
    assert student.output.centre.item() == 3.0
    assert student(student.view(part.columns)).shape == (4,)
