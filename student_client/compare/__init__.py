"""The comparison of methods: the same budget for each, several seeds, tuned on validation rows alone."""
