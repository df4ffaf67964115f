"""The service: posterior samples over HTTP, runs and their actors."""
