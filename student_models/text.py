"""The text student: a small BERT cut in the middle, with its own tokenizer; knows no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel
from transformers.masking_utils import create_bidirectional_mask

from student_models.card import StudentCard
from student_models.columns import text_column
from student_models.head import head_for
from student_models.student import Columns, LayeredStudent, States, Tensors
from student_models.tokenizer import PADDING, encode, hash_of, read_tokenizer, wrapped
from student_models.weights import read_weights, write_weights

__all__ = ["TextStudent"]


class TextStudent(LayeredStudent):
    """Embeddings and the first half of the layers below the entry tap, the other half above it.

    The exit tap is the last layer's output, the head a masked mean and a linear layer, without the mean where tokens have
    labels. The body is a plain
    Hugging Face `BertModel`: a saved folder opens with `AutoModel.from_pretrained` and `AutoTokenizer` too.

    Args:
        card: sizes and task.
        tokenizer: built from the training split's text alone.
    """

    inputs = ("text",)

    def __init__(self, card: StudentCard, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.card, self.task, self.width = card, card.to_task(), card.sizes["width"]
        self.tokenizer = tokenizer
        self.body = BertModel(_bert_config(card, tokenizer), add_pooling_layer=False)
        self.layers = card.sizes["layers"]
        self.output = head_for(self.width, self.task, card.dropout)

    @classmethod
    def load(cls, folder: Path, card: StudentCard) -> TextStudent:
        """The student that `save` wrote.

        Raises:
            ModelLoadError: a file is missing or broken.
        """
        student = cls(card, read_tokenizer(folder / "tokenizer.json", card.sizes["max_tokens"]))
        read_weights(student.body, folder / "model.safetensors")
        read_weights(student.output, folder / "head.safetensors")
        return student

    def view(self, columns: Columns) -> Tensors:
        """`input_ids` [N, tokens] int64 and `attention_mask` [N, tokens] bool."""
        ids, mask = encode(self.tokenizer, text_column(columns, "text"))
        return {"input_ids": ids, "attention_mask": mask}

    def spans(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[int, int]]]:
        """Where each token lies in its text."""
        return [row.offsets for row in self.tokenizer.encode_batch(list(texts))]

    @property
    def tokenizer_hash(self) -> str:
        """What its tokenizer does to a text."""
        return hash_of(self.tokenizer)

    def embed(self, inputs: Tensors) -> States:
        """Word and position embeddings."""
        hidden = self.body.embeddings(input_ids=inputs["input_ids"])  # [batch, tokens, width]
        return States(hidden, inputs["attention_mask"].bool())

    def run(self, states: States, start: int, stop: int) -> States:
        """Layers `start` to `stop` - 1."""
        mask = create_bidirectional_mask(
            config=self.body.config, inputs_embeds=states.hidden, attention_mask=states.mask
        )
        hidden = states.hidden
        for layer in self.body.encoder.layer[start:stop]:
            hidden = layer(hidden, mask)
        return States(hidden, states.mask)

    def head(self, states: States) -> torch.Tensor:
        """[batch, outputs] logits, or [batch] predicted targets; [batch, tokens, outputs] where tokens have labels."""
        outputs: torch.Tensor = self.output(states)
        return outputs

    def save(self, folder: Path) -> None:
        """Writes body and tokenizer as Hugging Face does, the head and the card beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.body.config.to_json_file(folder / "config.json")
        write_weights(self.body, folder / "model.safetensors")
        write_weights(self.output, folder / "head.safetensors")
        wrapped(self.tokenizer, self.card.sizes["max_tokens"]).save_pretrained(folder)
        self.card.write(folder)


def _bert_config(card: StudentCard, tokenizer: Tokenizer) -> BertConfig:
    sizes = card.sizes
    return BertConfig(
        architectures=["BertModel"],
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["width"],
        max_position_embeddings=sizes["max_tokens"],
        type_vocab_size=1,
        pad_token_id=tokenizer.token_to_id(PADDING),
        hidden_dropout_prob=card.dropout,
        attention_probs_dropout_prob=card.dropout,
    )
