"""What a job keeps between its attempts: the last checkpoint, in a value of its own choosing.

Each is one message in the stream of the event log, on a subject of its own, which the log takes only from the
attempt that the log's last word belongs to. So it disturbs no event, and none who fell silent can write it.
"""

CHECKPOINT = "checkpoint"
"""The place of a job's last checkpoint among what it keeps."""

LARGEST = 65_536
"""Bytes of JSON that one kept value may take."""
