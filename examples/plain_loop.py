"""A PyTorch loop of your own against a served teacher: python examples/plain_loop.py MODEL TEXTS.csv HOST:PORT."""

import csv
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from student_client import Distillation, TeacherColumns, distillation_config, student_inputs


def main(name: str, path: str, teacher: str, lr: float = 1e-3) -> torch.nn.Module:
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    labels = sorted({row["label"] for row in rows})
    examples = [{**tokenizer(row["text"]), "text": row["text"], "label": labels.index(row["label"])} for row in rows]
    batches = DataLoader(examples, batch_size=8, collate_fn=TeacherColumns(DataCollatorWithPadding(tokenizer)))
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(labels)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    with Distillation(model, distillation_config(teacher, method="talking")) as distillation:
        for batch in batches:
            outputs = model(**student_inputs(batch))
            loss = distillation.loss(batch, outputs)  # the task's, and what the teacher says of it
            loss.backward()  # its gradients come back over the network
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            distillation.step(lr)  # and the codecs of both sides take their step
            print(loss.item())
    return model


if __name__ == "__main__":
    main(*sys.argv[1:4])
