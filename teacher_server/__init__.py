"""The served teacher: a frozen model, many students' sessions, one engine."""
