"""Every instrument of the server, and what is counted for each student."""
