"""The slots of a queue as JSON."""

import json

from jsq.model.queue_slots import SlotHolding, SlotTable

DECIMALS = 3
"""Decimals of a time in seconds: milliseconds."""


def encode_slots(table: SlotTable) -> bytes:
    """Encode a table: for each worker its slots, how many it wants, since when, and until when."""
    written = {
        name: [one.slots, one.wanted, round(one.since, DECIMALS), round(one.until, DECIMALS)]
        for name, one in table.holders.items()
    }
    return json.dumps({"workers": written}, separators=(",", ":")).encode()


def decode_slots(body: bytes) -> SlotTable:
    """Decode a table; an unreadable table is empty."""
    try:
        return SlotTable(
            {
                name: SlotHolding(int(slots), int(wanted), float(since), float(until))
                for name, (slots, wanted, since, until) in json.loads(body)["workers"].items()
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return SlotTable()
