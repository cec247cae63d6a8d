"""A first configuration: questions, what a teacher's card and a file propose, and the file written."""
