"""From this process to a teacher's: the verbs over gRPC, shared memory, who the student is, which replica serves it."""
