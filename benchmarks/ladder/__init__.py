"""The rows of the fidelity ladder: problems whose posterior is known exactly, rivals, and what is kept."""
