"""Bytes: how arguments, results, jobs and events look on the wire. JSON throughout, never pickle."""
