"""Several replicas of one teacher under Ray: placed, watched, replaced, more of them when calls wait; no data passes through Ray."""
