"""One small distillation for the tests of training loops: a student's folder, texts in a file, a Trainer as the other loops train."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from student_client.loops.hugging_face import DistillationTrainer
from tests.unit.teacher_server.tiny_models import VOCABULARY, tiny_tokenizer

__all__ = ["LABELS", "LR", "arguments", "examples_of", "student_folder", "trainer_of", "weights_of"]

LABELS, LR = ("no", "yes"), 1e-3


def student_folder(folder: Path, dropout: float = 0.0, layers: int = 2) -> Path:
    """A classifier of two labels with its tokenizer, as `save_pretrained` writes it."""
    config = hf.BertConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        pad_token_id=1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        id2label=dict(enumerate(LABELS)),
        label2id={label: place for place, label in enumerate(LABELS)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        hf.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 40
    tokenizer.save_pretrained(folder)
    return folder


def examples_of(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = csv.DictReader(path.read_text().splitlines())
    return [{**tokenizer(row["text"]), "text": row["text"], "label": LABELS.index(row["label"])} for row in rows]


def arguments(output: Path, **fields: Any) -> hf.TrainingArguments:
    """One pass in the order of the file at a constant learning rate."""
    given: dict[str, Any] = {
        "num_train_epochs": 1,
        "learning_rate": LR,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "weight_decay": 0.01,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "optim": "adamw_torch",
    }
    return hf.TrainingArguments(str(output), **(given | fields))


def trainer_of(student: Path, texts: Path, teacher: str, output: Path, **given: Any) -> DistillationTrainer:
    """A Trainer over the examples of a file; AdamW decays every weight, as in the other loops."""
    tokenizer = hf.AutoTokenizer.from_pretrained(student)
    model = hf.AutoModelForSequenceClassification.from_pretrained(student)
    examples = examples_of(texts, tokenizer)
    options = {name: given.pop(name) for name in ("method", "callbacks", "compute_loss_func") if name in given}
    return DistillationTrainer(
        model=model,
        args=arguments(output, **given),
        train_dataset=examples,
        eval_dataset=examples[:12],
        processing_class=tokenizer,
        optimizers=(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01), None),
        teacher=teacher,
        **options,
    )


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
