"""What the doctors of both sides share: findings, rounds of checks, and what can be told by the protocol alone."""
