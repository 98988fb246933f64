"""Pulls messages from the server, and renews the leases of their deliveries."""
