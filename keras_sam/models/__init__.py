"""The image encoder, the backbone that wires SAM's three parts, and the tasks built on it."""
