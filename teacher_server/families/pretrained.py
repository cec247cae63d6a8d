"""What the families of transformers models share: a base model, its blocks, its head; knows no architecture."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from teacher_server.families.family import Family, LayerSpan
from teacher_server.families.inputs import ImageSettings

__all__ = ["PretrainedFamily", "head_of"]


_GRAPHS = 1024


class PretrainedFamily(Family):
    """One loaded transformers model, cut at its blocks; its key-value cache is switched off.

    Args:
        model: a base model or a model with a head; its base is used.
        tokenizer: its transformers tokenizer; without one a text teacher has no port `text`.
        image: how an image teacher wants its pixels; None takes the size from the config.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The config's `model_type`s this family reads."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any | None = None, image: ImageSettings | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image = image
        self.base = self._base(model)
        self.config = self.base.config
        self.blocks: Sequence[nn.Module] = self._blocks()
        self._runs: Sequence[Callable[..., Any]] = self.blocks
        self._is_compiled = False
        if getattr(model.config, "use_cache", False):
            model.config.use_cache = False

    @property
    def name(self) -> str:
        """The config's `model_type`."""
        return str(self.config.model_type)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the hidden states at every cut 0 .. layers."""
        return (int(self.config.hidden_size),) * (self.layers + 1)

    @property
    def heads(self) -> tuple[str, ...]:
        """The head that the model's class tells; `multi_label_classification` where its config says that classes are independent."""
        head = head_of(type(self.model).__name__)
        if head and getattr(self.model.config, "problem_type", None) == "multi_label_classification":
            return ("multi_label_classification",)
        return (head,) if head else ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of a classification head in order; empty for any other teacher."""
        if not self.heads or self.heads == ("causal_lm",) or self.model.config.problem_type == "regression":
            return ()
        names = self.model.config.id2label
        return tuple(str(names[number]) for number in range(len(names)))

    def run(self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan) -> torch.Tensor:
        """Runs the blocks of `span`; see `Family.run`.

        Raises:
            InvalidTensor: states that this family cannot lay out (see the family).
        """
        raw = self._lay_out(states)
        if self._is_compiled:
            _allow_graphs()
        for block, arguments in zip(
            self._runs[span.start : span.stop], self._arguments(states, mask, span), strict=True
        ):
            raw = _first(block(raw, **arguments))
        return self._flatten(raw)

    def compile(self, backend: str) -> None:
        """Has torch.compile make kernels of the blocks; equal blocks share them, and sizes stay open."""
        self._runs = [torch.compile(block, dynamic=True, backend=backend) for block in self.blocks]
        self._is_compiled = True

    def run_again(self) -> None:
        """Has each block run again in backward, one after the other: a graph holds their inputs and none of their weights.

        So weights that are on their device only while they are used are not all there at once because a graph holds them.
        """
        self._runs = [partial(_again, block) for block in self.blocks]

    def logits(
        self, inputs: Mapping[str, torch.Tensor], cuts: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """A forward of the whole model, as its own class does it."""
        with self.captured(cuts) as found:
            return self.model(**inputs).logits, found

    def say(self, finished: torch.Tensor) -> torch.Tensor:
        """A causal language model's head, as it is."""
        if self.heads != ("causal_lm",):
            return super().say(finished)
        logits: torch.Tensor = self.model.get_output_embeddings()(finished)
        return logits

    @property
    def language_head(self) -> torch.Tensor | None:
        """The weights of a head without a bias that lie whole on a device."""
        head = self.model.get_output_embeddings() if self.heads == ("causal_lm",) else None
        if not isinstance(head, nn.Linear) or head.bias is not None or head.weight.is_meta:
            return None
        return head.weight

    @contextmanager
    def captured(self, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
        """While open, a forward of the whole model by this thread leaves its states at the cuts `layers` in the dict."""
        found: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for layer in set(layers):
                stack.callback(self._capture(layer, found).remove)
            yield found

    def _capture(self, layer: int, found: dict[int, torch.Tensor]) -> Any:
        here = threading.get_ident()

        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if threading.get_ident() == here:  # others may run the model, too
                found[layer] = self._flatten(arguments[0])

        def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == here:
                found[layer] = self._flatten(_first(output))

        if layer < self.layers:
            return self.blocks[layer].register_forward_pre_hook(before)
        return self.blocks[-1].register_forward_hook(after)

    def _base(self, model: PreTrainedModel) -> Any:
        return model.base_model

    @abstractmethod
    def _blocks(self) -> Sequence[nn.Module]:
        """The blocks in order."""

    @abstractmethod
    def _arguments(
        self, states: torch.Tensor, mask: torch.Tensor | None, span: LayerSpan
    ) -> Sequence[Mapping[str, Any]]:
        """What each block of the span takes besides the states, one mapping a block."""

    def _lay_out(self, states: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> what a block takes."""
        return states

    def _flatten(self, raw: torch.Tensor) -> torch.Tensor:
        """What a block gives -> [batch, tokens, width]."""
        return raw


class _Again(torch.autograd.Function):
    """A block that leaves no graph behind: backward runs it again, from its input, and goes through that."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, arguments: Mapping[str, Any], raw: torch.Tensor) -> torch.Tensor:
        ctx.block, ctx.arguments = block, arguments
        ctx.save_for_backward(raw)
        return _first(block(raw, **arguments))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        raw = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = _first(ctx.block(raw, **ctx.arguments))
        return None, None, torch.autograd.grad(output, raw, grad)[0]


def _again(block: nn.Module, raw: torch.Tensor, **arguments: Any) -> torch.Tensor:
    if not (torch.is_grad_enabled() and raw.requires_grad):
        return _first(block(raw, **arguments))
    found: torch.Tensor = _Again.apply(block, arguments, raw)  # type: ignore[no-untyped-call]
    return found


def _allow_graphs() -> None:
    """Lets one block's code be compiled for every width, mask, gradient and size of one; each thread has its own limit."""
    config = torch._dynamo.config
    if config.recompile_limit != _GRAPHS:
        config.recompile_limit = config.accumulated_recompile_limit = _GRAPHS


def head_of(architecture: str) -> str:
    """The name of the head an architecture's class name tells: one that `logits` can come from, or empty."""
    suffixes = {
        "ForSequenceClassification": "sequence_classification",
        "ForTokenClassification": "token_classification",
        "ForCausalLM": "causal_lm",
        "LMHeadModel": "causal_lm",
        "ForImageClassification": "image_classification",
    }
    return next((head for suffix, head in suffixes.items() if architecture.endswith(suffix)), "")


def _first(output: Any) -> torch.Tensor:
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first
