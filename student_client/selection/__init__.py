"""Knowledge selection by actor-critic (arXiv 2302.00444): the selector, how it is learned, episodes, the command."""
