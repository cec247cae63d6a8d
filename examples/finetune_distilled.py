"""Fine-tunes a classifier of short texts, as one does: python finetune_plain.py MODEL TEXTS.csv (text, label)."""

import csv
import sys
from pathlib import Path

import transformers
from student_client import DistillationTrainer


def main(name: str, path: str) -> None:
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    labels = sorted({row["label"] for row in rows})
    examples = [
        {**tokenizer(row["text"], truncation=True), "text": row["text"], "label": labels.index(row["label"])}
        for row in rows
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(labels))
    trainer = DistillationTrainer(
        teacher=sys.argv[3],
        model=model,
        args=transformers.TrainingArguments("finetuned", num_train_epochs=2, learning_rate=1e-3, report_to="none"),
        train_dataset=examples[len(examples) // 5 :],
        eval_dataset=examples[: len(examples) // 5],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())


if __name__ == "__main__":
    main(*sys.argv[1:3])
