from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from teacher_server.engine.conversation import Conversation, Own, needs_own_states
from teacher_server.engine.merging import answering, together
from teacher_server.models.split import FrozenTeacher
from teacher_server.sessions.codecs import CodecShape, TeacherCodec
from teaching_protocol.errors import InvalidTensor, UnknownPort
from teaching_protocol.verbs import SessionSettings, Tensors

WIDTH, BODY = 6, 32
ENTRY, EXIT = 1, 3
ALL = (
    "answer",
    "answer_state",
    "teacher_message.enter",
    "teacher_message.exit",
    "state_consistency",
    "cross_consistency",
)


@dataclass(frozen=True)
class Talk:
    """A conversation all by itself: what it asks for is answered for it alone."""

    teacher: FrozenTeacher
    conversation: Conversation

    @property
    def codec(self) -> TeacherCodec:
        return self.conversation.codec

    def ports(self, inputs: Tensors, own: Own | None, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        (found,) = together([self.conversation.ports(inputs, own, outputs)], answering(self.teacher))
        if isinstance(found, Exception):
            raise found
        return found


def talk(bert: FrozenTeacher, **settings: Any) -> Talk:
    wishes = SessionSettings(**{"message_width": WIDTH, "entry": ENTRY, "exit": EXIT} | settings)
    shape = CodecShape(BODY, BODY, WIDTH, wishes.message_tokens, wishes.pooling, wishes.codec_depth)
    return Talk(bert, Conversation(TeacherCodec(shape, seed=5), wishes))


def own(tokens: int = 4, batch: int = 2) -> Own:
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[1:, -1] = False
    enter, exit_ = (torch.randn(batch, tokens, BODY) for _ in range(2))
    return Own(enter, exit_, mask, mask)


# The equations once more, plainly and in float64.


def norm(x: torch.Tensor, layer: nn.LayerNorm | None = None) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled if layer is None else scaled * layer.weight.double() + layer.bias.double()


def mlp(x: torch.Tensor, layers: list[nn.Module]) -> torch.Tensor:
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            x = norm(x, layer)
        elif isinstance(layer, nn.Linear):
            x = x @ layer.weight.double().T + layer.bias.double()
        else:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x


def encode(codec: TeacherCodec, state: torch.Tensor) -> torch.Tensor:
    return mlp(state.double(), list(codec.encoders[str(BODY)]))


def decode(codec: TeacherCodec, message: torch.Tensor) -> torch.Tensor:
    return mlp(message.double(), list(codec.decoders[str(BODY)]))


def think(bert: FrozenTeacher, state: torch.Tensor) -> torch.Tensor:
    """The span on states without padding, by the model's own blocks."""
    state = state.float()
    for block in bert.model.base_model.encoder.layer[ENTRY:EXIT]:
        found = block(state)
        state = found[0] if isinstance(found, tuple) else found
    return state.double()


def error(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = [norm(found[b, t]) - norm(wanted[b, t].double()) for b, t in mask.nonzero().tolist()]
    return torch.stack([row.square().mean() for row in rows]).mean()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=2e-5)


def test_the_answer_is_enc_of_span_of_dec(bert: FrozenTeacher) -> None:
    conversation, message = talk(bert), torch.randn(2, 5, WIDTH)
    found = conversation.ports({"message": message}, None, ("answer", "answer_state"))
    state = think(bert, decode(conversation.codec, message))
    close(found["answer_state"], state)
    close(found["answer"], encode(conversation.codec, state))


def test_padding_of_the_message_changes_nothing(bert: FrozenTeacher) -> None:
    conversation, message = talk(bert), torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = conversation.ports({"message": message, "message_mask": mask}, None, ("answer",))["answer"]
    assert not found[1, 3:].any()
    close(found[1:, :3], encode(conversation.codec, think(bert, decode(conversation.codec, message[1:, :3]))))
    message[1, 3:] = 1e3
    again = conversation.ports({"message": message, "message_mask": mask}, None, ("answer",))["answer"]
    assert torch.equal(again, found)


@pytest.mark.parametrize("inject", ["replace", "add", "prefix"])
@pytest.mark.parametrize("answer_from", ["message", "message_and_input"])
def test_padding_in_every_way_into_the_teacher(bert: FrozenTeacher, inject: str, answer_from: str) -> None:
    conversation = talk(bert, inject=inject, answer_from=answer_from)
    message, states = torch.randn(2, 4, WIDTH), own()
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    inputs = {"message": message, "message_mask": mask}
    found = conversation.ports(inputs, states, ("answer",))["answer"]
    message[~mask] = 50.0
    states.enter[1, -1], states.exit[1, -1] = 70.0, 70.0
    again = conversation.ports(inputs, states, ("answer",))["answer"]
    assert torch.equal(again, found)


@pytest.mark.parametrize("tokens", [0, 2])
def test_about_the_input(bert: FrozenTeacher, tokens: int) -> None:
    conversation, states = talk(bert, message_tokens=tokens), own(6 if tokens else 4)
    codec, mask = conversation.codec, states.enter_mask
    message, leaving = torch.randn(2, tokens or 4, WIDTH), torch.randn(2, tokens or 4, WIDTH)
    found = conversation.ports({"message": message, "message_exit": leaving}, states, ALL)
    enter, exit_ = states.enter, states.exit
    if tokens:
        enter, exit_ = (segment_means(each, mask, tokens) for each in (enter, exit_))
        mask = torch.ones(2, tokens, dtype=torch.bool)
    close(found["teacher_message.enter"], encode(codec, enter) * mask[..., None])
    close(found["teacher_message.exit"], encode(codec, exit_) * mask[..., None])
    returned = [error(decode(codec, encode(codec, each)), each, mask) for each in (enter, exit_)]
    close(found["state_consistency"], returned[0] + returned[1])
    read = [error(decode(codec, message), enter, mask), error(decode(codec, leaving), exit_, mask)]
    close(found["cross_consistency"], (read[0] + read[1]) / 2)
    alone = conversation.ports({"message": message}, states, ("cross_consistency",))
    close(alone["cross_consistency"], read[0])


def segment_means(states: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    rows = []
    for row, real in zip(states, mask, strict=True):
        tokens, n = row[real], int(real.sum())
        rows.append([tokens[j * n // count : -(-(j + 1) * n // count)].double().mean(0) for j in range(count)])
    return torch.stack([torch.stack(row) for row in rows])


def test_the_input_joins_the_answer(bert: FrozenTeacher) -> None:
    conversation, states = talk(bert, answer_from="message_and_input"), own()
    message = torch.randn(2, 4, WIDTH)
    found = conversation.ports({"message": message}, states, ("answer",))["answer"]
    state = think(bert, decode(conversation.codec, message)) + states.exit.double()
    close(found, encode(conversation.codec, state) * states.exit_mask[..., None])


def test_the_message_is_added_or_put_before(bert: FrozenTeacher) -> None:
    states = own(batch=1)
    message = torch.randn(1, 4, WIDTH)
    adding = talk(bert, inject="add")
    added = think(bert, states.enter + decode(adding.codec, message))
    close(adding.ports({"message": message}, states, ("answer",))["answer"], encode(adding.codec, added))
    one = decode(adding.codec, message[:, :1])  # one token is added to all
    close(
        adding.ports({"message": message[:, :1]}, states, ("answer",))["answer"],
        encode(adding.codec, think(bert, states.enter + one)),
    )
    before = talk(bert, inject="prefix")
    joined = think(bert, torch.cat([decode(before.codec, message), states.enter.double()], 1))[:, :4]
    close(before.ports({"message": message}, states, ("answer",))["answer"], encode(before.codec, joined))


@pytest.mark.parametrize("inject", ["replace", "add"])
def test_a_gate_of_zero_drops_the_message_of_its_row(bert: FrozenTeacher, inject: str) -> None:
    conversation, states = talk(bert, inject=inject, answer_from="message_and_input"), own()

    def answer(message: torch.Tensor, gate: list[float]) -> torch.Tensor:
        inputs = {"message": message, "message_gate": torch.tensor(gate)}
        return conversation.ports(inputs, states, ("answer",))["answer"]

    one, other = torch.randn(2, 4, WIDTH), torch.randn(2, 4, WIDTH)
    assert torch.equal(answer(one, [0.0, 0.0]), answer(other, [0.0, 0.0]))
    assert torch.equal(answer(one, [1.0, 1.0]), conversation.ports({"message": one}, states, ("answer",))["answer"])
    mixed = answer(one, [0.0, 1.0])
    torch.testing.assert_close(mixed[0], answer(other, [0.0, 0.0])[0])
    torch.testing.assert_close(mixed[1], answer(one, [1.0, 1.0])[1])
    if inject == "replace":
        own_words = encode(conversation.codec, states.exit) * states.exit_mask[..., None]
        close(answer(one, [0.0, 0.0]), own_words)


def test_gate_and_message_have_the_gradient_of_finite_differences(bert: FrozenTeacher) -> None:
    conversation, states = talk(bert, inject="add"), own()
    message, gate = torch.randn(2, 4, WIDTH, requires_grad=True), torch.tensor([0.7, 0.2], requires_grad=True)

    def value(message: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        inputs = {"message": message, "message_gate": gate}
        return conversation.ports(inputs, states, ("answer",))["answer"].double().pow(3).sum()

    value(message, gate).backward()
    for leaf, place in ((message, (1, 2, 3)), (gate, (1,))):
        step = torch.zeros_like(leaf)
        step[place] = 2e-3
        with torch.no_grad():
            moved = [
                value(message + s * step, gate) if leaf is message else value(message, gate + s * step) for s in (1, -1)
            ]
        slope = (moved[0] - moved[1]) / 4e-3
        assert leaf.grad is not None
        assert float(leaf.grad[place]) == pytest.approx(float(slope), rel=0.03, abs=0.02)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_every_part_of_the_codec_has_a_gradient(bert: FrozenTeacher, pooling: str) -> None:
    conversation = talk(bert, message_tokens=2, pooling=pooling, answer_from="message_and_input")
    found = conversation.ports({"message": torch.randn(2, 2, WIDTH)}, own(6), ALL)
    sum(value.pow(3).sum() for value in found.values()).backward()  # type: ignore[union-attr]
    names = [name for name, parameter in conversation.codec.named_parameters()]
    assert any("queries" in name for name in names) is (pooling == "attention")
    for name, parameter in conversation.codec.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("settings", "ports", "expected"),
    [
        ({}, ("answer", "answer_state"), False),
        ({}, ("answer", "state_consistency"), True),
        ({}, ("logits",), False),
        ({"inject": "add"}, ("answer",), True),
        ({"answer_from": "message_and_input"}, ("answer",), True),
        ({"answer_from": "message_and_input"}, ("hidden.1",), False),
    ],
)
def test_when_own_states_are_needed(settings: dict[str, str], ports: tuple[str, ...], expected: bool) -> None:
    assert needs_own_states(SessionSettings(**settings), ports) is expected  # type: ignore[arg-type]


def test_what_does_not_fit(bert: FrozenTeacher) -> None:
    conversation = talk(bert, inject="add", answer_from="message_and_input")
    with pytest.raises(UnknownPort, match="'answer' needs the input port 'message'"):
        conversation.ports({}, own(), ("answer",))
    with pytest.raises(UnknownPort, match="'cross_consistency' needs"):
        conversation.ports({}, own(), ("cross_consistency",))
    with pytest.raises(InvalidTensor, match="3 tokens cannot be added to the teacher's 4; send one token"):
        conversation.ports({"message": torch.zeros(2, 3, WIDTH)}, own(), ("answer",))
    with pytest.raises(InvalidTensor, match="enrol with message_tokens equal to the tokens of your message"):
        talk(bert).ports({"message": torch.zeros(2, 3, WIDTH)}, own(), ("cross_consistency",))
