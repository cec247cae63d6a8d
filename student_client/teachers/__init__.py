"""Teachers as a student's training sees them: modules, sessions, several as one, lost and found again."""
