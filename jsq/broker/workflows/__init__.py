"""Workflows: jobs whose nodes are jobs, and the joins between these."""
