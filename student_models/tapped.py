"""Any module as a student: its states are read at taps, its head is its own; knows no teacher and no method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from student_models.auto_models import auto_model, task_of
from student_models.columns import text_column
from student_models.layer_drop import drop_layers, every_layer
from student_models.pretrained_heads import head_named
from student_models.student import Columns, States, Student, Tensors, Trace
from student_models.taps import Tap, Taps, layer_taps
from student_models.tokenizer import hash_of
from student_models.weights import write_weights
from task_data.splits import Task
from teaching_protocol.errors import ConfigError, ModelLoadError

__all__ = ["TappedStudent"]

_TOKENS = 512


class TappedStudent(Student):
    """A model of yours or of transformers; it may be wrapped, trained and saved by whoever you like.

    Args:
        model: takes its inputs by name and gives logits [batch, outputs]: as they are, as `logits` of an output, or first.
        task: what it predicts; None reads it from a transformers config.
        taps: names of the modules whose outputs lie at cuts 0, 1, ...; None takes a transformer's layers.
        head: from states [batch, tokens, width] to outputs; None takes that of the model type, where it is known. Only
            methods that have the head read an answer need it.
        tokenizer: of a transformers model; only `view` needs it.

    Raises:
        ConfigError: no such tap, or a task that is no classification and no regression.
    """

    inputs = ("text",)

    def __init__(
        self,
        model: nn.Module,
        task: Task | None = None,
        taps: Sequence[str | Tap] | None = None,
        head: Callable[[States], torch.Tensor] | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self._head = model, tokenizer, head
        self.task = task_of(model) if task is None else task
        cuts = layer_taps(model) if taps is None else [Tap(each) if isinstance(each, str) else each for each in taps]
        self.taps = Taps(model, cuts)
        self.layers = len(cuts) - 1
        self.width = _width(model, cuts)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        task: Task | None = None,
        keep: Sequence[int] = (),
        every: int = 1,
        seed: int = 0,
    ) -> Self:
        """A transformers model by a hub's name or folder, with its tokenizer: a classifier, or a causal language model.

        Args:
            name: of a model, or the folder that `save` wrote.
            task: for a head of its own; None keeps the head that was saved. A language model keeps its head anyway.
            keep: the layers that are kept, from 0; none given keeps every `every`-th.
            every: see `keep`.
            seed: of the weights of a new head.

        Raises:
            ModelLoadError: it cannot be had, or is no model with such a head.
            ConfigError: layers that are not there.
        """
        heads: dict[str, Any] = {}
        if task is not None and task.level != "next_token":
            labels = {} if task.is_regression else {"id2label": dict(enumerate(task.labels))}
            heads = {"num_labels": task.outputs, **labels, "ignore_mismatched_sizes": True}
            heads |= {"label2id": {label: place for place, label in enumerate(task.labels)}} if labels else {}
            heads |= {"problem_type": "multi_label_classification"} if task.is_multi_label else {}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                model = auto_model(name, task).from_pretrained(str(name), **heads)
            tokenizer = AutoTokenizer.from_pretrained(str(name))
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelLoadError(
                f"{name} does not load as a model with a head for the task ({reason}); give a name or folder with weights and a tokenizer"
            ) from error
        if keep or every > 1:
            model = drop_layers(model, keep or every_layer(model.config.num_hidden_layers, every))
        return cls(model, task, tokenizer=tokenizer)

    def view(self, columns: Columns) -> Tensors:
        """`input_ids` and `attention_mask` [N, tokens] int64, by the model's own tokenizer."""
        found = self._tokens(text_column(columns, "text"), padding=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def spans(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[int, int]]]:
        """Where each token lies in its text."""
        found: Sequence[Sequence[tuple[int, int]]] = self._tokens(texts, return_offsets_mapping=True)["offset_mapping"]
        return found

    @property
    def vocabulary_size(self) -> int:
        """Of a language model: rows of its head."""
        config: Any = getattr(self.model, "config", None)
        return int(config.vocab_size) if self.task.level == "next_token" else 0

    @property
    def tokenizer_hash(self) -> str:
        """What its tokenizer does to a text; empty without one."""
        return "" if self.tokenizer is None else hash_of(self.tokenizer)

    def forward(self, inputs: Tensors) -> torch.Tensor:
        """The student alone."""
        return self._logits(self.model(**inputs))

    def trace(self, inputs: Tensors) -> Trace:
        """Runs the model, and reads its taps."""
        return self.traced(self.model(**inputs))

    def traced(self, outputs: Any) -> Trace:
        """What the model has just put out, with the states of the same forward."""
        return Trace(self.taps.take(), self._logits(outputs))

    def head(self, states: States) -> torch.Tensor:
        """What the model's own head makes of states.

        Raises:
            ConfigError: it is not known for this model.
        """
        if self._head is not None:
            return self._head(states)
        return self._logits(head_named(self.model, self.task.level)(self.model, states))

    def save(self, folder: Path) -> None:
        """As `save_pretrained` does, to be loaded by any Auto class; of another module the weights alone."""
        if isinstance(self.model, PreTrainedModel):
            self.model.save_pretrained(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self.model, folder / "model.safetensors")

    def _tokens(self, texts: Sequence[str], **options: Any) -> Any:
        """What its tokenizer makes of texts, cut where the model ends, padded behind them."""
        if self.tokenizer is None:
            raise ConfigError("this student has no tokenizer; give it one: TappedStudent(model, tokenizer=...)")
        if self.tokenizer.pad_token is None and self.tokenizer.eos_token is not None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # of a language model; the mask hides it
        longest = getattr(self.model.config, "max_position_embeddings", _TOKENS)
        limit = min(_TOKENS, self.tokenizer.model_max_length, longest)
        return self.tokenizer(list(texts), truncation=True, max_length=limit, padding_side="right", **options)

    def _logits(self, outputs: Any) -> torch.Tensor:
        if isinstance(outputs, Mapping):
            outputs = outputs["logits"]
        elif isinstance(outputs, tuple):
            outputs = next(each for each in outputs if each.dim() > 0)
        found: torch.Tensor = outputs
        return found.squeeze(-1) if self.task.is_regression and found.dim() == 2 else found


def _width(model: nn.Module, cuts: Sequence[Tap]) -> int:
    """Width of the states: the config's, or that of the last layer with one below the last tap."""
    config = getattr(model, "config", None)
    if config is not None:
        return int(config.hidden_size)
    modules = list(model.get_submodule(cuts[-1].module).modules())
    if isinstance(modules[-1], nn.RNNBase):
        last = modules[-1]
        return (last.proj_size or last.hidden_size) * (2 if last.bidirectional else 1)
    widths = [
        getattr(module, name)
        for module in modules
        for name in ("out_features", "out_channels", "embedding_dim")
        if isinstance(getattr(module, name, None), int)
    ]
    if not widths:
        raise ConfigError(f"taps: the width at {cuts[-1].module!r} cannot be seen; tap a module that ends in a layer")
    return int(widths[-1])
