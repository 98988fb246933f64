"""The accounts, users and permissions of roles, for the configuration of a server."""
