"""The text student: a small BERT cut in the middle, with its own tokenizer; knows no teacher."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.masking_utils import create_bidirectional_mask

from student_client.config import StudentConfig
from student_client.data.splits import Split, TaskData
from student_client.students.card import StudentCard, sizes_of
from student_client.students.columns import text_column
from student_client.students.head import PooledHead, target_centre
from student_client.students.student import States, Student, Tensors
from student_client.students.tokenizer import PADDING, encode, read_tokenizer, train_tokenizer
from student_client.students.weights import read_weights, write_weights

__all__ = ["TextStudent"]


class TextStudent(Student):
    """Embeddings and the first half of the layers below the entry tap, the other half above it.

    The exit tap is the last layer's output, the head a masked mean and a linear layer. The body is a plain
    Hugging Face `BertModel`: a saved folder opens with `AutoModel.from_pretrained` and `AutoTokenizer` too.

    Args:
        card: sizes and task.
        tokenizer: built from the training split's text alone.
    """

    def __init__(self, card: StudentCard, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.card, self.task, self.width = card, card.to_task(), card.sizes["width"]
        self.tokenizer = tokenizer
        self.body = BertModel(_bert_config(card, tokenizer), add_pooling_layer=False)
        self.cut = card.sizes["layers"] // 2
        self.output = PooledHead(self.width, self.task, card.dropout)

    @classmethod
    def build(cls, config: StudentConfig, data: TaskData) -> TextStudent:
        """A new student for a data set; its vocabulary holds the training split's words, labelled or not.

        Raises:
            ConfigError: sizes that do not fit together.
            DataError: the data set has no column of text.
        """
        sizes = sizes_of(config, "text")
        card = StudentCard(
            modality="text", task=data.task.name, labels=data.task.labels, sizes=sizes, dropout=config.dropout
        )
        tokenizer = train_tokenizer(text_column(data.train, "text"), sizes["vocabulary_size"], sizes["max_tokens"])
        student = cls(card, tokenizer)
        student.output.centre.copy_(target_centre(data.task, data.train))
        return student

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

    def view(self, split: Split) -> Tensors:
        """`input_ids` [N, tokens] int64 and `attention_mask` [N, tokens] bool."""
        ids, mask = encode(self.tokenizer, text_column(split, "text"))
        return {"input_ids": ids, "attention_mask": mask}

    def lower(self, inputs: Tensors) -> States:
        """Embeddings and the layers below the cut."""
        hidden = self.body.embeddings(input_ids=inputs["input_ids"])  # [batch, tokens, width]
        return self._run(self.body.encoder.layer[: self.cut], States(hidden, inputs["attention_mask"].bool()))

    def upper(self, states: States) -> States:
        """The layers above the cut."""
        return self._run(self.body.encoder.layer[self.cut :], states)

    def head(self, states: States) -> torch.Tensor:
        """[batch, outputs] logits, or [batch] predicted targets."""
        outputs: torch.Tensor = self.output(states)
        return outputs

    def save(self, folder: Path) -> None:
        """Writes body and tokenizer as Hugging Face does, the head and the card beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.body.config.to_json_file(folder / "config.json")
        write_weights(self.body, folder / "model.safetensors")
        write_weights(self.output, folder / "head.safetensors")
        PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer,
            pad_token=PADDING,
            unk_token="[UNK]",
            cls_token="[CLS]",
            model_max_length=self.card.sizes["max_tokens"],
        ).save_pretrained(folder)
        self.card.write(folder)

    def _run(self, layers: Iterable[nn.Module], states: States) -> States:
        mask = create_bidirectional_mask(
            config=self.body.config, inputs_embeds=states.hidden, attention_mask=states.mask
        )
        hidden = states.hidden
        for layer in layers:
            hidden = layer(hidden, mask)
        return States(hidden, states.mask)


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
