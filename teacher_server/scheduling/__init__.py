"""From many callers to the engine's threads: who may come in, whose turn it is, how long a batch waits; runs no model."""
