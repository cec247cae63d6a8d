"""`teacher-server doctor`: whether this machine can serve as it is told to, and whether a server does; measured."""
