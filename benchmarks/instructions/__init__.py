"""Instructions that the host executes for a tiny call, which repeat where times do not."""
