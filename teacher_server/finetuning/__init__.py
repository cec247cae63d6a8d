"""A teacher that learns a task before it is served; knows no student."""
