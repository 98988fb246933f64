"""Middleware for other products, one module each. A module needs the package of its product."""
