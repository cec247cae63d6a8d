"""`python -m teacher_server` is the command `teacher-server`."""

from teacher_server.cli import main

main()
