"""Bytes: the encoding of arguments, results, jobs and records. Always JSON, never pickle."""
