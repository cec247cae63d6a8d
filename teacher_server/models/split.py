"""A frozen teacher: its states, its logits, a differentiable span of it; knows no message, codec or session."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from student_models.language_head import hash_of_head
from student_models.tokenizer import hash_of
from teacher_server.families import ImageSettings, LayerSpan, family_for
from teacher_server.models.pauses import Pauses
from teacher_server.models.sharding import is_sharded, whole
from teacher_server.models.spreading import is_offloaded, is_spread, main_device, whole_tensors
from teaching_protocol.errors import InvalidSetting, InvalidTensor, UnknownPort

__all__ = ["FrozenTeacher", "LayerSpan", "freeze"]

Tensors = Mapping[str, torch.Tensor]

_TRIED_ROWS, _TRIED_TOKENS = 3, 4  # unequal, or torch.compile takes them for one size; and four tokens are a grid


class FrozenTeacher:
    """A loaded model, frozen and cut. Several threads may run it at once, unless its weights move.

    Args:
        model: a transformers model of a supported family or a trained student, on its device; frozen in place.
        name: shown on the teacher's card.
        tokenizer: its transformers tokenizer; without one a text teacher has no port `text`. A student has its own.
        image: how an image teacher wants its pixels; None takes size from the config. A student knows its own.

    Raises:
        UnsupportedFamily: no adapter for the model.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str = "",
        tokenizer: Any | None = None,
        image: ImageSettings | None = None,
    ) -> None:
        self.name = name
        self.model = freeze(model)
        self.family = family_for(model, tokenizer, image)
        self.is_spread, self._device = is_spread(model) or is_sharded(model), main_device(model)
        self._turn: AbstractContextManager[Any] = threading.Lock() if self.is_spread else nullcontext()
        if is_offloaded(model):
            self.family.run_again()
        self._inputs = self.family.build_inputs()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the body's states."""
        return next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())

    @property
    def device(self) -> torch.device:
        """The device states enter on, and come back to."""
        return self._device if self.is_spread else next(self.model.parameters()).device

    @property
    def input_ports(self) -> tuple[str, ...]:
        """The ports of the teacher's own input, sorted."""
        return self._inputs.ports

    @property
    def heads(self) -> tuple[str, ...]:
        """The head that gives `logits`, as a tuple of one name or none."""
        return self.family.heads

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of a classification head in order; empty for any other teacher."""
        return self.family.labels

    @property
    def vocabulary_size(self) -> int:
        """Rows of the token table; 0 for a teacher that reads no text."""
        return self.family.vocabulary_size

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of parameters, and bytes of parameters and buffers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(each.numel() for each in self.model.parameters()), sum(each.nbytes for each in tensors)

    @functools.cached_property
    def model_hash(self) -> str:
        """SHA-256 over the name, dtype, shape and bytes of every parameter and buffer, as hex digits."""
        digest = hashlib.sha256()
        for name, tensor in whole_tensors(self.model):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @functools.cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of what the tokenizer does to a text, as hex digits; empty without a tokenizer."""
        if self.family.tokenizer is None:
            return ""
        return hash_of(self.family.tokenizer)

    def default_span(self) -> LayerSpan:
        """From a third of the way up (the input of block `layers // 3`, not below 1) to the last cut."""
        layers = self.family.layers
        return LayerSpan(min(max(1, layers // 3), layers - 1), layers)

    def prepare(self, inputs: Tensors, max_tokens: int = 512) -> dict[str, torch.Tensor]:
        """The model's inputs, checked, from the ports among `inputs` that are the teacher's own; not yet on its device.

        A text is cut to `max_tokens` tokens; ids under the mask's zeros become the padding id. Other ports pass by.

        Raises:
            UnknownPort: a port of another modality, or `text` without a tokenizer.
            InvalidSetting: two ports that exclude each other.
            InvalidTensor: nothing to prepare, or a dtype, shape or value that does not fit.
        """
        return self._inputs.prepare(inputs, max_tokens)

    def kind(self, row: Tensors) -> Hashable:
        """What prepared rows must have in common to be joined; a row has no batch dimension."""
        ragged = self._inputs.padding
        return tuple((name, each.dtype, each.shape[1 if name in ragged else 0 :]) for name, each in row.items())

    def join(self, rows: Sequence[Tensors]) -> dict[str, torch.Tensor]:
        """Prepared rows of one kind as one batch, the shorter filled up as `prepare` does."""
        padding = self._inputs.padding
        return {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=padding[name])
            if name in padding
            else torch.stack([row[name] for row in rows])
            for name in rows[0]
        }

    def compile(self, backend: str = "inductor") -> None:
        """Has torch.compile make kernels of the span's blocks, and tries them once.

        Raises:
            InvalidSetting: a teacher that is not compiled, or a machine without what the backend needs.
        """
        last = LayerSpan(self.family.layers - 1, self.family.layers)
        states = torch.zeros(_TRIED_ROWS, _TRIED_TOKENS, self.family.widths[last.start], requires_grad=True)
        try:
            self.family.compile(backend)
            torch.autograd.grad(self.upper(states, None, last).float().sum(), states)
        except InvalidSetting:
            raise
        except Exception as error:  # each backend fails in its own ways
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InvalidSetting(
                f"compile: {backend} makes no kernels here ({line}); install what it needs (a C++ compiler on a CPU, "
                "Triton on a GPU), or leave compile away"
            ) from error

    def example(self) -> dict[str, torch.Tensor]:
        """One row of the teacher's own input, as a student would send it."""
        return self._inputs.example()

    def states(
        self,
        inputs: Tensors,
        layers: Sequence[int],
        with_logits: bool = False,
        with_pooled: bool = False,
        with_finished: bool = False,
    ) -> dict[str, torch.Tensor]:
        """The teacher's own view of prepared `inputs`, without gradients; blocks are run only as far as needed.

        Returns:
            `hidden.<l>` [batch, tokens, widths[l]], the states at cut l (before the final norm), for l in `layers`;
            `logits` of the model's own head; `pooled` [batch, width], see `Family.pool`; `last_hidden_state` [batch, tokens, width],
            behind the final norm.

        Raises:
            UnknownPort: a layer the teacher has not, or logits of a teacher without a head.
        """
        self._check_ports(layers, with_logits)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        cuts = sorted({*layers, *([self.family.layers] if with_pooled or with_finished else [])})
        with torch.no_grad(), self._turn:
            found = self.look(inputs, cuts, with_logits, with_pooled, with_finished)
        kept = {f"hidden.{layer}" for layer in layers} | {"logits", "pooled", "last_hidden_state"}
        return {name: value for name, value in found.items() if name in kept}

    def said(self, finished: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of a language model's last hidden states [..., width], without gradients.

        Raises:
            UnknownPort: a teacher without such a head.
        """
        with torch.no_grad(), self._turn:
            return self.say(finished)

    @functools.cached_property
    def head_hash(self) -> str:
        """What tells the head of a language model, as `student_models.language_head` has it; empty of any other teacher."""
        weight = self.family.language_head
        return "" if weight is None else hash_of_head(whole(weight))

    def upper(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan, pauses: Pauses | None = None
    ) -> torch.Tensor:
        """Runs `span` on states [batch, tokens, widths[span.start]] of any origin; differentiable, weights frozen.

        The states are taken to the teacher's device and dtype; a mask [batch, tokens] is True on real tokens. `pauses` that
        are open are made between the layers.

        Raises:
            InvalidSetting: a span beyond the last layer.
            InvalidTensor: states or mask that do not fit the span.
        """
        self._check_states(states, mask, span)
        mask = None if mask is None else mask.to(self.device, torch.bool)
        states = states.to(self.device, self.dtype)
        if pauses is None or not pauses.are_open:
            return self._in_turn(states, mask, span)
        for layer in range(span.start, span.stop):
            if layer > span.start:
                pauses.after_layer(states, (layer - span.start) / (span.stop - span.start))
            states = self._in_turn(states, mask, LayerSpan(layer, layer + 1))
        return states

    def _in_turn(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        with self._turn:
            return self.run(states, mask, span).to(self.device)

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """What `upper` runs, on states and mask that are as the body takes them."""
        return self.family.run(states, mask, span)

    def look(
        self, inputs: Tensors, cuts: Sequence[int], with_logits: bool, with_pooled: bool, with_finished: bool
    ) -> dict[str, torch.Tensor]:
        """What `states` runs, on inputs that lie on the device: the states at all `cuts`, the last of them where what lies behind it is asked for."""
        outputs: dict[str, torch.Tensor] = {}
        if with_logits:
            logits, found = self.family.logits(inputs, cuts)
            outputs["logits"] = logits.to(self.device)
        else:
            found = self.family.climb(inputs, cuts)
        found = {layer: state.to(self.device) for layer, state in found.items()}
        if with_pooled or with_finished:
            finished = self.family.finish(found[self.family.layers]).to(self.device)
            outputs |= {"last_hidden_state": finished} if with_finished else {}
            if with_pooled:
                outputs["pooled"] = self.family.pool(finished, self.family.own_mask(inputs, finished))
        return outputs | {f"hidden.{layer}": state for layer, state in found.items()}

    def say(self, finished: torch.Tensor) -> torch.Tensor:
        """What `said` runs."""
        return self.family.say(finished).to(self.device)

    def close(self) -> None:
        """Lets go of what it has beside memory: nothing, where one process has all of the weights."""

    def _check_ports(self, layers: Sequence[int], with_logits: bool) -> None:
        for layer in layers:
            if not 0 <= layer <= self.family.layers:
                raise UnknownPort(
                    f"`hidden.{layer}` asked for, this teacher has hidden.0 to hidden.{self.family.layers}"
                )
        if with_logits and not self.heads:
            raise UnknownPort(
                "`logits` asked for, this teacher has no head; serve a model with one, or ask for `pooled`"
            )

    def _check_states(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> None:
        if span.stop > self.family.layers:
            raise InvalidSetting(
                f"span {span.start}:{span.stop} on a teacher of {self.family.layers} layers; lower entry and exit"
            )
        width = self.family.widths[span.start]
        if states.dim() != 3 or states.shape[-1] != width or not states.is_floating_point() or not states.numel():
            received = f"{list(states.shape)} {str(states.dtype).removeprefix('torch.')}"
            raise InvalidTensor(f"states at cut {span.start} are {received}, expected [batch, tokens, {width}] float")
        if mask is not None and mask.shape != states.shape[:2]:
            raise InvalidTensor(f"mask is {list(mask.shape)}, expected {list(states.shape[:2])}, one value a token")


def freeze(model: nn.Module) -> nn.Module:
    """Switches off the parameters' gradients and dropout, in place; gradients still pass."""
    return model.requires_grad_(False).eval()
