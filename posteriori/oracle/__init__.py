"""Exact posteriors: by enumeration, and by dynamic programming for Markov language models."""
