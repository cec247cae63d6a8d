"""`python -m student_client` is the command `student-client`; knows nothing else."""

from __future__ import annotations

from student_client.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
