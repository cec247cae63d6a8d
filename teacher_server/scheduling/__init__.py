"""From many callers to one engine thread: who may come in, whose turn it is, how long a batch waits; runs no model."""
