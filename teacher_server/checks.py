"""What a request must be before it may cost anything: settings, ports, shapes, numbers; pure checks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from teacher_server.engine.conversation import CONVERSATION_PORTS, MESSAGE_INPUTS, needs_own_states
from teaching_protocol.errors import InvalidSetting, InvalidTensor, NonFiniteError, UnknownPort
from teaching_protocol.tensors import is_finite
from teaching_protocol.verbs import (
    BackwardRequest,
    DescribeReply,
    ForwardRequest,
    SessionSettings,
    StepRequest,
    Tensors,
)

__all__ = [
    "LANGUAGE_PORTS",
    "check_backward",
    "check_forward",
    "check_id",
    "check_settings",
    "check_step",
    "check_student",
]

LANGUAGE_PORTS = ("last_hidden_state", "logprobs.top<k>", "logprobs.top<k>.t<percent>", "tokens.top<k>")
"""Output ports that a causal language model has besides."""

_NAME_CHARACTERS = 128
_NUMBER_DIGITS = 10
_ID_CHARACTERS = 128
_MOST_ROWS = 2**40
_POOLINGS = ("mean", "cls", "attention")
_SOURCES = ("message", "message_and_input")
_INJECTIONS = ("replace", "add", "prefix")
_NO_SEQUENCE = {
    "efficientnet": "a grid",
    "image_student": "a grid",
    "ratings_student": "one token",
    "resnet": "a grid",
}


def check_student(name: str) -> None:
    """A student's name is 1 to 128 printable characters."""
    if not name.strip() or len(name) > _NAME_CHARACTERS or not name.isprintable():
        raise InvalidSetting(
            f"student name {name[:40]!r} (of {len(name)} characters): give 1 to {_NAME_CHARACTERS} printable ones"
        )


def check_id(field: str, text: str) -> None:
    """An id is kept as long as its call may be repeated, so it may not be long."""
    if len(text) > _ID_CHARACTERS:
        raise InvalidSetting(f"{field} has {len(text)} characters, at most {_ID_CHARACTERS} are accepted")


def check_settings(settings: SessionSettings, card: DescribeReply) -> None:
    """Refuses settings this teacher cannot serve.

    Raises:
        InvalidSetting: the field, what was received, what is accepted.
    """
    limits = card.limits
    check_id("task", settings.task)
    _between("message_width", settings.message_width, 1, limits.message_width)
    _between("message_tokens", settings.message_tokens, 0, limits.tokens)
    _between("codec_depth", settings.codec_depth, 1, limits.codec_depth)
    _between("entry", settings.entry, 0, card.layers - 1)
    _between("exit", settings.exit, settings.entry + 1, card.layers)
    _between("world_size", settings.world_size, 0, limits.ranks)
    _one_of("pooling", settings.pooling, _POOLINGS)
    _one_of("answer_from", settings.answer_from, _SOURCES)
    _one_of("inject", settings.inject, _INJECTIONS)
    if settings.inject == "prefix" and card.family in _NO_SEQUENCE:
        raise InvalidSetting(
            f"inject 'prefix' needs a sequence, but this teacher's states are {_NO_SEQUENCE[card.family]}; "
            "use replace or add"
        )
    optimizer = settings.optimizer
    for name in ("weight_decay", "eps", "momentum"):
        _between(f"optimizer.{name}", getattr(optimizer, name), 0.0, 1e6)


def check_forward(request: ForwardRequest, settings: SessionSettings, card: DescribeReply) -> None:
    """Refuses a Forward whose ports, shapes or numbers do not fit.

    Raises:
        UnknownPort, InvalidTensor, NonFiniteError, InvalidSetting: with what to do.
    """
    check_id("call_id", request.call_id)
    _check_rank(request.rank, settings)
    if not request.call_id and request.backward_follows:
        raise InvalidSetting("call_id is empty; give each call an id of its own")
    for name in request.inputs:
        if name not in MESSAGE_INPUTS and name not in card.input_ports:
            raise UnknownPort(f"input port {name!r} is unknown; this teacher takes {', '.join(card.input_ports)}")
    if not request.outputs:
        raise UnknownPort("no output port was asked for; name at least one")
    if len(set(request.outputs)) != len(request.outputs):
        raise UnknownPort(f"an output port is named twice in {list(request.outputs)}")
    for name in request.outputs:
        _check_output(name, card)
    _check_message(request.inputs, settings)
    _check_own(request.inputs)
    _check_rows(request.inputs, card)
    _check_grads_wanted(request)
    own = [name for name in request.inputs if name not in MESSAGE_INPUTS]
    outside = [name for name in request.outputs if name not in CONVERSATION_PORTS]
    if not own and (outside or needs_own_states(settings, request.outputs)):
        raise UnknownPort(
            f"outputs {', '.join(request.outputs)} are about the raw input, but only a message was sent; "
            f"send one of {', '.join(port for port in card.input_ports if port not in MESSAGE_INPUTS)} as well"
        )


def check_backward(request: BackwardRequest, settings: SessionSettings, card: DescribeReply) -> None:
    """Refuses a Backward without gradients, or with NaN or infinity in one."""
    check_id("call_id", request.call_id)
    check_id("forward_id", request.forward_id)
    _check_rank(request.rank, settings)
    if not request.call_id or not request.forward_id:
        raise InvalidSetting("call_id or forward_id is empty; a Backward names its own id and its Forward's")
    if not request.grads:
        raise InvalidTensor("a Backward without gradients; send the gradient of at least one output port")
    _check_finite(request.grads)
    if request.inputs:
        again = ForwardRequest(
            request.session, request.forward_id, request.outputs, True, request.grad_inputs, request.inputs
        )
        check_forward(again, settings, card)


def check_step(request: StepRequest, settings: SessionSettings) -> None:
    """Refuses a Step with numbers no optimizer can use, or of a rank that is none."""
    _check_rank(request.rank, settings)
    _between("rows", request.rows, 0, _MOST_ROWS)
    _between("lr", request.lr, 0.0, 1e6)
    _between("grad_scale", request.grad_scale, 0.0, 1e30)
    _between("max_grad_norm", request.max_grad_norm, 0.0, 1e30)


def _check_rank(rank: int, settings: SessionSettings) -> None:
    _between("rank", rank, 0, max(0, settings.world_size - 1))


def _check_output(name: str, card: DescribeReply) -> None:
    if name in card.output_ports and "<" not in name:
        return
    kind, _, rest = name.partition(".")
    if kind == "hidden" and _is_hidden(rest, card):
        return
    if "logprobs.top<k>" in card.output_ports and _is_of_language(name):
        return
    count = rest.removeprefix("top")
    if kind == "logits" and rest.startswith("top") and card.heads and _is_number(count) and int(count) > 0:
        return
    raise UnknownPort(f"output port {name!r} is not served; this teacher serves {', '.join(card.output_ports)}")


def _is_of_language(name: str) -> bool:
    """Whether a port is `tokens.top<k>`, `logprobs.top<k>` or `logprobs.top<k>.t<percent>`."""
    kind, _, rest = name.partition(".top")
    count, has_temperature, percent = rest.partition(".t")
    numbers = [count, percent] if has_temperature and kind == "logprobs" else [rest]
    return kind in ("logprobs", "tokens") and all(_is_number(each) and int(each) > 0 for each in numbers)


def _is_hidden(rest: str, card: DescribeReply) -> bool:
    """Whether `hidden.` goes on as <layer> or <layer>.mean<tokens>."""
    layer, mean, tokens = rest.partition(".mean")
    if not _is_number(layer) or int(layer) > card.layers:
        return False
    return not mean or (_is_number(tokens) and 1 <= int(tokens) <= card.limits.tokens)


def _is_number(text: str) -> bool:
    """Whether a port's number is written in the one way it is known by: 1, and not 01."""
    return text.isascii() and text.isdigit() and len(text) < _NUMBER_DIGITS and text == str(int(text))


def _check_own(inputs: Tensors) -> None:
    """The shapes that the teacher's own inputs need before anything looks into them."""
    own = {name: tensor for name, tensor in inputs.items() if name not in MESSAGE_INPUTS}
    for name, tensor in own.items():
        if tensor.dim() < 2 or 0 in tensor.shape:
            raise InvalidTensor(f"{name}: shape {list(tensor.shape)}, expected [rows, ...] with something in every row")
    mask = own.get("attention_mask")
    if mask is not None and ("input_ids" not in own or mask.shape != own["input_ids"].shape):
        beside = list(own["input_ids"].shape) if "input_ids" in own else "none were sent"
        raise InvalidTensor(f"attention_mask: shape {list(mask.shape)}, expected that of input_ids ({beside})")


def _check_message(inputs: Tensors, settings: SessionSettings) -> None:
    for name in ("message", "message_exit"):
        if name in inputs:
            message = inputs[name]
            if message.dim() != 3 or not message.is_floating_point() or 0 in message.shape:
                raise InvalidTensor(
                    f"{name}: {message.dtype} {list(message.shape)}, expected float [rows, tokens, {settings.message_width}]"
                )
            if message.shape[2] != settings.message_width:
                raise InvalidTensor(
                    f"{name}: width {message.shape[2]}, but the session was enrolled with message_width {settings.message_width}"
                )
            if settings.message_tokens not in (0, message.shape[1]):
                raise InvalidTensor(
                    f"{name}: {message.shape[1]} tokens, but the session was enrolled with message_tokens {settings.message_tokens}"
                )
    _check_finite(inputs)
    for name in ("message_mask", "message_gate"):
        if name in inputs:
            _check_beside_message(name, inputs)


def _check_beside_message(name: str, inputs: Tensors) -> None:
    if "message" not in inputs:
        raise InvalidTensor(f"{name} was sent without a message")
    tensor, (rows, tokens, _) = inputs[name], inputs["message"].shape
    wanted = (rows, tokens) if name == "message_mask" else (rows,)
    if tuple(tensor.shape) != wanted:
        raise InvalidTensor(f"{name}: shape {list(tensor.shape)}, expected {list(wanted)} to go with the message")
    if name == "message_gate" and not tensor.is_floating_point():
        raise InvalidTensor(f"{name}: {tensor.dtype}, expected a float tensor")
    if name == "message_mask" and (tensor.dtype != torch.bool or not bool(tensor.any(1).all())):
        raise InvalidTensor(f"{name}: {tensor.dtype}; expected bool with at least one real token in every row")


def _check_rows(inputs: Tensors, card: DescribeReply) -> None:
    if not inputs:
        raise InvalidTensor("no input was sent")
    rows = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in inputs.items()}
    if len(set(rows.values())) > 1:
        raise InvalidTensor(f"the inputs have different numbers of rows: {rows}")
    _between("rows", next(iter(rows.values())), 1, card.limits.rows)
    if "message" in inputs:
        _between("message tokens", inputs["message"].shape[1], 1, card.limits.tokens)


def _check_grads_wanted(request: ForwardRequest) -> None:
    for name in request.grad_inputs:
        if name not in request.inputs or name not in MESSAGE_INPUTS or not request.inputs[name].is_floating_point():
            raise InvalidTensor(f"grad_inputs names {name!r}; only float message ports that were sent have a gradient")


def _check_finite(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{name}: {bad} of {tensor.numel()} numbers are NaN or infinity; lower the learning rate or loss scale"
            )


def _between(field: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidSetting(f"{field}: received {value}, accepted are {low} to {high}")


def _one_of(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise InvalidSetting(f"{field}: received {value!r}, accepted are {', '.join(known)}")
