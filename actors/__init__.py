"""Rollout actors: engines that sample Z under versioned adapters, and the pool that keeps them alive."""
