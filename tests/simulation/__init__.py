"""A simulated disk, simulated processes on it, and what power cuts leave of it."""
