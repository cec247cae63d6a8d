"""The same with Lightning: python examples/lightning_student.py MODEL TEXTS.csv HOST:PORT."""

import csv
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from student_client import Distillation, TeacherColumns, distillation_config, student_inputs


class DistilledStudent(lightning.LightningModule):
    def __init__(self, model: torch.nn.Module, distillation: Distillation, lr: float) -> None:
        super().__init__()
        self.model, self.distillation, self.lr = model, distillation, lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.lr)

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        return self.distillation.loss(batch, self.model(**student_inputs(batch)))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self.distillation.step(optimizer.param_groups[0]["lr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["distillation"] = self.distillation.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.distillation.load_state_dict(checkpoint["distillation"])


def main(name: str, path: str, teacher: str, lr: float = 1e-3, **settings: Any) -> torch.nn.Module:
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    labels = sorted({row["label"] for row in rows})
    examples = [{**tokenizer(row["text"]), "text": row["text"], "label": labels.index(row["label"])} for row in rows]
    batches = DataLoader(examples, batch_size=8, collate_fn=TeacherColumns(DataCollatorWithPadding(tokenizer)))
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(labels)).train()
    with Distillation(model, distillation_config(teacher, method="talking")) as distillation:
        trainer = lightning.Trainer(max_epochs=1, gradient_clip_val=1.0, accelerator="cpu", logger=False, **settings)
        trainer.fit(DistilledStudent(model, distillation, lr), batches)
    return model


if __name__ == "__main__":
    main(*sys.argv[1:4])
