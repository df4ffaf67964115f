"""Replay buffer, adapter store and run registry on Redis, with in-memory twins of the first two."""
