"""One student's state on the server: lease, codec, optimizer, calls, export."""
