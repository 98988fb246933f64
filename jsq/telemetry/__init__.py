"""Metrics for Prometheus, probes for Kubernetes, and log lines of a worker."""
