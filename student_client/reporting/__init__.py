"""What is said of a run: while it trains, to whoever watches from outside, and what came of it."""
