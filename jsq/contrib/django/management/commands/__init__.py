"""The module of each management command."""
