"""A worker pulls deliveries, runs their tasks, and records what they came to."""

from jsq.worker.observer import Observer
from jsq.worker.worker import Worker

__all__ = ["Observer", "Worker"]
