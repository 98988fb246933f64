"""The management command of jsq."""
