"""The gRPC side of the server: services, strangers refused, health, shared memory."""
