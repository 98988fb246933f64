"""Paths of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "nats-server.conf"
"""The conf that jsq ships."""
