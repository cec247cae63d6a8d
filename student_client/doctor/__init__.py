"""`student-client doctor`: what a student can tell of a teacher from where it stands, measured."""
