"""Labels on a student's tokens: words on their first one, next tokens by one shift, for tokenizers of three kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from student_models import TappedStudent
from student_models.causal import causal_student
from student_models.pretrained_heads import TOKEN_HEADS
from student_models.token_labels import labelled_view, next_tokens, on_first_tokens
from student_models.tokenizer import hash_of, train_tokenizer
from task_data import IGNORED, TOKEN_LABELS, Split, Task
from tests.unit.teacher_server.tiny_models import tiny_inputs, tiny_model, tiny_tokenizer

WORDS = ["Anna", "visits", "the", "U.S.", "über-film", "(again)"]


def byte_pairs() -> Tokenizer:
    """As GPT-2 and SmolLM2 have it: a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    return tokenizer


TOKENIZERS = {
    "words": lambda: train_tokenizer([" ".join(WORDS)] * 2, 100, 64),
    "byte pairs": byte_pairs,
    "characters": lambda: train_tokenizer(["a b"] * 2, 5, 64),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=9))
def test_each_word_has_its_label_on_its_first_token(kind: str, words: list[str]) -> None:
    text = " ".join(words)
    row = TOKENIZERS[kind]().encode(text)
    labels = torch.arange(len(words))[None]
    found = on_first_tokens(labels, [text], [row.offsets], len(row.ids))[0]
    places = (found != IGNORED).nonzero().flatten().tolist()
    assert found[places].tolist() == list(range(len(words)))  # every word once, in order
    starts = [len(" ".join(words[:at])) + (at > 0) for at in range(len(words))]
    for place, start in zip(places, starts, strict=True):
        first, behind = row.offsets[place]
        assert first <= start < behind
        assert text[first:start].strip() == ""


def test_words_behind_the_cut_have_no_label() -> None:
    found = on_first_tokens(torch.tensor([[0, 1, 2]]), ["one two three"], [[(0, 3), (4, 7)]], 4)
    assert found.tolist() == [[0, 1, IGNORED, IGNORED]]


def test_next_tokens_are_shifted_once() -> None:
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert next_tokens(ids, mask).tolist() == [[5, 6, 7, IGNORED], [9, IGNORED, IGNORED, IGNORED]]


def split_of(texts: list[str], labels: torch.Tensor) -> Split:
    return Split({"text": texts}, texts, labels, torch.ones(len(texts), dtype=torch.bool))


def causal(tokenizer: Any) -> TappedStudent:
    sizes = {"width": 16, "layers": 2, "heads": 2, "max_tokens": 16}
    return causal_student(tokenizer, 60, Task("text", level="next_token"), sizes, 0.0).eval()


def test_a_causal_student_sees_what_is_before_alone_and_its_labels_are_what_follows() -> None:
    """A later token changes nothing before it; the loss of our labels is the one that transformers computes by itself."""
    student = causal(tiny_tokenizer())
    texts = ["good film bad", "film film good bad good"]
    view = labelled_view(student, split_of(texts, torch.zeros(2, dtype=torch.int64)))
    labels = view[TOKEN_LABELS]
    assert labels.tolist() == [[7, 6, IGNORED, IGNORED, IGNORED], [7, 5, 6, 5, IGNORED]]
    inputs = {name: view[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = student(inputs)
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 2:] = 8
        torch.testing.assert_close(student(changed)[:, :2], outputs[:, :2])
        known = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
        theirs = student.model(**inputs, labels=known).loss
    ours = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(ours, theirs)


def test_a_pretrained_student_of_tokens_puts_labels_on_its_own_tokens() -> None:
    task = Task("words", ("A", "B"), level="token")
    backend = train_tokenizer(["good über-film"] * 2, 20, 16)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    student = TappedStudent(tiny_model("bert"), task, tokenizer=tokenizer)
    view = labelled_view(student, split_of(["über-film good", "good"], torch.tensor([[1, 0], [0, IGNORED]])))
    skip = IGNORED  # [CLS] über - film good
    assert view[TOKEN_LABELS].tolist() == [[skip, 1, skip, skip, 0], [skip, 0, skip, skip, skip]]
    assert student.tokenizer_hash == hash_of(backend) != ""


@pytest.mark.parametrize("kind", [kind for kind in TOKEN_HEADS if kind != "xlm-roberta"])  # which is roberta's class
def test_heads_of_tokens_read_states_as_their_models_do(kind: str) -> None:
    config = tiny_model(kind).config
    config.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_config(config).eval()
    student = TappedStudent(model)
    assert student.task.level == "token"
    trace = student.trace(tiny_inputs(kind, 2, 6))
    assert trace.outputs.shape == (2, 6, 3)
    torch.testing.assert_close(student.head(trace.states[-1]), trace.outputs)
