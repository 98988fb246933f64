"""What a worker shows of itself: metrics for Prometheus, probes for Kubernetes, and log lines."""
