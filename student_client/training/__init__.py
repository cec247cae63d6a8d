"""The training of one student: the loop and what it is made of, ranks, cuts and checkpoints, the student's scores."""
