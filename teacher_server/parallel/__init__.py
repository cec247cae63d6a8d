"""One teacher over several processes: the one that serves has the others run every pass over the body with it."""
