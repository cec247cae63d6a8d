"""Many students on one machine: who is next, on which cores, what is done when one ends; trains nothing itself."""
