"""A new causal language model as a student: a small Llama, to be read at taps; knows no teacher and no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from student_models.tapped import TappedStudent
from task_data.splits import Task

__all__ = ["causal_student"]


def causal_student(
    tokenizer: Any, vocabulary: int, task: Task, sizes: Mapping[str, int], dropout: float
) -> TappedStudent:
    """A student whose every token sees those before it alone, and predicts the next one.

    Args:
        tokenizer: of transformers, its own or another model's.
        vocabulary: how many tokens it predicts; with another model's tokenizer as many as that model, which may be more
            than the tokenizer makes.
        task: of level `next_token`.
        sizes: `width`, `layers`, `heads` and `max_tokens`.
        dropout: of the attention, in training.
    """
    width = sizes["width"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["heads"],
        intermediate_size=4 * width,
        max_position_embeddings=sizes["max_tokens"],
        attention_dropout=dropout,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TappedStudent(LlamaForCausalLM(config), task, tokenizer=tokenizer)
