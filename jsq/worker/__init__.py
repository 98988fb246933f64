"""A worker pulls deliveries, runs their tasks, and records the outcomes."""

from jsq.worker.observer import Observer
from jsq.worker.worker import Worker

__all__ = ["Observer", "Worker"]
