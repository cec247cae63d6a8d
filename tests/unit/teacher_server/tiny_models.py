"""Tiny random-weight models of every family, and inputs for them; seeded, downloads nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

__all__ = ["MODEL_TYPES", "TEXT_TYPES", "VOCABULARY", "text_bytes", "tiny_inputs", "tiny_model", "tiny_tokenizer"]

VOCABULARY = 60
IMAGE = 32
TEXT_TYPES = ("bert", "roberta", "mpnet", "distilbert", "electra", "llama", "qwen2", "mistral", "gpt2", "t5")
MODEL_TYPES = (*TEXT_TYPES, "vit", "efficientnet", "resnet")


def tiny_model(model_type: str, head: bool = True) -> hf.PreTrainedModel:
    """A model of width 32 with 3 or 4 blocks, in eval mode; with its usual head, T5 always without.

    Weights are large enough for gradients to be seen, and batch norms have uneven statistics.
    """
    base, headed, config = _recipes()[model_type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: hf.PreTrainedModel = (headed if head else base)(config())
        for module in model.modules():
            _stir(module)
    return model.eval()


def tiny_inputs(model_type: str, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Prepared inputs: right-padded ids with their mask (row b has `tokens - b` real tokens, at least 1), or pixels."""
    generator = torch.Generator().manual_seed(1)
    if model_type not in TEXT_TYPES:
        return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)}
    ids = torch.randint(5, VOCABULARY, (batch, tokens), generator=generator)
    lengths = torch.arange(tokens, tokens - batch, -1).clamp(min=1)
    mask = (torch.arange(tokens) < lengths.unsqueeze(1)).long()
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def tiny_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A word tokenizer: [UNK] 0, [PAD] 1, good 5, bad 6, film 7, über 8."""
    words = {"[UNK]": 0, "[PAD]": 1, "good": 5, "bad": 6, "film": 7, "über": 8}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def text_bytes(*rows: str) -> torch.Tensor:
    """Texts as the port `text` takes them: UTF-8 padded with zeros, [batch, bytes] uint8."""
    encoded = [torch.tensor(list(row.encode()), dtype=torch.uint8) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)


def _stir(module: nn.Module) -> None:
    with torch.no_grad():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.5)


def _recipes() -> dict[str, tuple[Any, Any, Callable[[], Any]]]:
    size = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 1}
    labels = {"num_labels": 3}
    causal = {**size, **text, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
    return {
        "bert": (hf.BertModel, hf.BertForSequenceClassification, lambda: hf.BertConfig(**size, **text, **labels)),
        "roberta": (
            hf.RobertaModel,
            hf.RobertaForSequenceClassification,
            lambda: hf.RobertaConfig(**size, **text, **labels),
        ),
        "mpnet": (hf.MPNetModel, hf.MPNetForSequenceClassification, lambda: hf.MPNetConfig(**size, **text, **labels)),
        "distilbert": (
            hf.DistilBertModel,
            hf.DistilBertForSequenceClassification,
            lambda: hf.DistilBertConfig(dim=32, n_layers=4, n_heads=4, hidden_dim=48, **text, **labels),
        ),
        "electra": (
            hf.ElectraModel,
            hf.ElectraForSequenceClassification,
            lambda: hf.ElectraConfig(embedding_size=16, **size, **text, **labels),
        ),
        "llama": (hf.LlamaModel, hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**causal)),
        "qwen2": (
            hf.Qwen2Model,
            hf.Qwen2ForCausalLM,
            lambda: hf.Qwen2Config(use_sliding_window=True, sliding_window=3, max_window_layers=2, **causal),
        ),
        "mistral": (hf.MistralModel, hf.MistralForCausalLM, lambda: hf.MistralConfig(sliding_window=4, **causal)),
        "gpt2": (
            hf.GPT2Model,
            hf.GPT2LMHeadModel,
            lambda: hf.GPT2Config(
                vocab_size=VOCABULARY, n_positions=40, n_embd=32, n_layer=4, n_head=4, bos_token_id=2, eos_token_id=3
            ),
        ),
        "t5": (
            hf.T5EncoderModel,
            hf.T5EncoderModel,
            lambda: hf.T5Config(
                vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4, pad_token_id=1
            ),
        ),
        "vit": (
            hf.ViTModel,
            hf.ViTForImageClassification,
            lambda: hf.ViTConfig(image_size=IMAGE, patch_size=8, **size, **labels),
        ),
        "efficientnet": (hf.EfficientNetModel, hf.EfficientNetForImageClassification, _efficientnet),
        "resnet": (
            hf.ResNetModel,
            hf.ResNetForImageClassification,
            lambda: hf.ResNetConfig(
                image_size=IMAGE, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", **labels
            ),
        ),
    }


def _efficientnet() -> hf.EfficientNetConfig:
    # Widths are nominal: everything is taken times `width_coefficient` and rounded to 8.
    return hf.EfficientNetConfig(
        image_size=IMAGE,
        width_coefficient=0.025,
        depth_coefficient=1.0,
        kernel_sizes=[3, 5, 3],
        in_channels=[320, 320, 640],
        out_channels=[320, 640, 1280],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 2, 2],
        hidden_dim=32,
        num_labels=3,
    )
