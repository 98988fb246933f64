"""The state of a key group as JSON: the admitted jobs by id, with the kinds of their slots."""

from typing import Any

from pydantic_core import from_json, to_json

from jsq.errors import BadEnvelope
from jsq.model.key_group import SLOT_KINDS, GroupState, SlotHolder


def encode(turn: GroupState) -> bytes:
    written: dict[str, Any] = {
        "slots": {id: [place, after] for id, place, after in turn.slots},
        "admitted_up_to": turn.admitted_up_to,
    }
    if turn.admitting:
        written["admitting"] = list(turn.admitting)
    return to_json(written)


def decode(payload: bytes) -> GroupState:
    """Decode the state of a key group. Raises `BadEnvelope`."""
    try:
        found = from_json(payload)
        holders = tuple(
            SlotHolder(str(id), SLOT_KINDS[SLOT_KINDS.index(place)], int(after))
            for id, (place, after) in found["slots"].items()
        )
        moving = tuple(str(id) for id in found.get("admitting", ()))
        return GroupState(holders, moving, int(found["admitted_up_to"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadEnvelope(f"not the state of a key group: {error}") from error
