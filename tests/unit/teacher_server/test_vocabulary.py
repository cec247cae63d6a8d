"""The likeliest next tokens: exact, the same in any pieces, and no logits of a whole batch on the way."""

from __future__ import annotations

import pytest
import torch

from student_models.language_head import hash_of_head, read_head
from teacher_server.engine import vocabulary
from teacher_server.engine.knowledge import Knowledge
from teacher_server.engine.knowledge_cache import KnowledgeCache
from teacher_server.engine.transfers import Transfers
from teacher_server.engine.vocabulary import likeliest
from teacher_server.metrics.metrics import Metrics
from teacher_server.models.split import FrozenTeacher
from teaching_protocol.errors import ModelLoadError, UnknownPort
from tests.unit.teacher_server.tiny_models import VOCABULARY, tiny_inputs, tiny_model

CAUSAL = ("llama", "qwen2", "mistral", "gpt2")


class Head:
    """A head that remembers how many positions it was asked about at once."""

    def __init__(self) -> None:
        self.weight = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(0))
        self.most = 0

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, len(states))
        return states @ self.weight.T


@pytest.mark.parametrize("positions", [1, 4, 1000])
def test_exact_in_any_pieces(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_PIECE_NUMBERS", positions * VOCABULARY)
    states, head = torch.randn(3, 5, 8), Head()
    found = likeliest(states, head, ["logprobs.top4", "logprobs.top4.t250", "tokens.top4", "logits.top4"])
    assert head.most == min(positions, 15)
    logits = states @ head.weight.T
    for port, temperature in (("logprobs.top4", 1.0), ("logprobs.top4.t250", 2.5)):
        whole = (logits / temperature).log_softmax(-1)
        places = found["tokens.top4"].long()
        torch.testing.assert_close(found[port][..., :-1], whole.topk(4).values)
        torch.testing.assert_close(found[port][..., :-1], whole.gather(-1, places))
        torch.testing.assert_close(found[port].exp().sum(-1), torch.ones(3, 5))
    assert found["tokens.top4"].dtype == torch.int32
    torch.testing.assert_close(found["logits.top4"][:, :, 0], logits.topk(4).values)
    assert torch.equal(found["logits.top4"][:, :, 1], found["tokens.top4"].float())


def test_one_token_is_always_left() -> None:
    found = likeliest(torch.randn(2, 3, 8), Head(), ["logprobs.top999", "tokens.top999", "logits.top999"])
    assert found["logprobs.top999"].shape == (2, 3, VOCABULARY)
    assert found["logprobs.top999"].isfinite().all()
    assert found["tokens.top999"].shape == (2, 3, VOCABULARY - 1)
    assert found["logits.top999"].shape == (2, 3, 2, VOCABULARY)


@pytest.mark.parametrize("model_type", CAUSAL)
def test_every_causal_family_says_what_its_model_says(model_type: str) -> None:
    """From the last hidden state by `said`, and through the cache: the whole model's logits, of each row's own tokens."""
    teacher = FrozenTeacher(tiny_model(model_type))
    inputs = tiny_inputs(model_type, 3, 6)
    logits = teacher.states(inputs, [], with_logits=True)["logits"]
    finished = teacher.states(inputs, [], with_finished=True)["last_hidden_state"]
    torch.testing.assert_close(teacher.said(finished), logits, atol=1e-5, rtol=1e-5)
    knowledge = Knowledge(
        teacher, KnowledgeCache(2**20, Metrics()), Transfers(teacher.device), batch_rows=8, max_tokens=64
    )
    rows = knowledge.rows(inputs, ["last_hidden_state", "logprobs.top3", "tokens.top3"])
    for row, found in enumerate(rows):
        length = int(inputs["attention_mask"][row].sum())
        values, places = logits[row, :length].log_softmax(-1).topk(3)
        assert found["last_hidden_state"].shape == (length, 32)
        torch.testing.assert_close(found["logprobs.top3"][:, :3], values, atol=1e-5, rtol=1e-5)
        assert torch.equal(found["tokens.top3"].long(), places)
    assert knowledge.find(inputs, ["tokens.top3", "logprobs.top3"]) is not None


def test_a_batch_never_has_its_logits_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a real model, watched while top ports are computed: it sees pieces."""
    monkeypatch.setattr(vocabulary, "_PIECE_NUMBERS", 5 * VOCABULARY)
    model = tiny_model("llama")
    teacher, seen = FrozenTeacher(model), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel()))
    knowledge = Knowledge(
        teacher, KnowledgeCache(2**20, Metrics()), Transfers(teacher.device), batch_rows=8, max_tokens=64
    )
    knowledge.rows(tiny_inputs("llama", 4, 9), ["logits.top2", "logprobs.top2", "tokens.top2"])
    assert max(seen) == 5 * VOCABULARY < sum(seen)


def test_other_teachers_have_no_vocabulary_to_speak_of() -> None:
    teacher = FrozenTeacher(tiny_model("bert"))
    assert teacher.head_hash == ""
    with pytest.raises(UnknownPort, match="no causal language model"):
        teacher.said(torch.zeros(1, 32))


@pytest.mark.parametrize("model_type", CAUSAL)
def test_the_head_is_read_from_a_model_s_files(model_type: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Of its own or tied to the table of tokens, in one file or several: what the served teacher has, and its hash."""
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    for folder in ("one", "several"):
        head = read_head(tmp_path / folder)
        assert torch.equal(head, model.get_output_embeddings().weight)
    assert FrozenTeacher(model).head_hash == hash_of_head(head) == hash_of_head(head.to(torch.bfloat16))
    assert hash_of_head(head) != hash_of_head(head + 1)


def test_what_has_no_head_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelLoadError, match="give the name or folder of a causal language model"):
        read_head(tmp_path)
