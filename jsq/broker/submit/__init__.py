"""Submits jobs in bulk, atomically, or under a unique key."""
