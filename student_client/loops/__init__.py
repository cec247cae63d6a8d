"""Distillation in loops that are not ours: plain PyTorch, transformers' Trainer, Lightning."""
