"""Stores and finds jobs: their messages, their records, their history."""
