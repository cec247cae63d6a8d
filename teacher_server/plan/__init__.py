"""`teacher-server plan`: what a teacher will hold and how many students it can serve, before its weights are loaded."""
