"""The state of a key group as JSON: the admitted jobs by id, with the kinds of their slots."""

from typing import Any

from pydantic_core import from_json, to_json

from jsq.errors import BadEnvelope
from jsq.model.key_group import SLOT_KINDS, GroupState, SlotHolder


def encode(state: GroupState) -> bytes:
    written: dict[str, Any] = {
        "slots": {id: [kind, after] for id, kind, after in state.slots},
        "admitted_up_to": state.admitted_up_to,
    }
    if state.admitting:
        written["admitting"] = list(state.admitting)
    return to_json(written)


def decode(payload: bytes) -> GroupState:
    """Decode the state of a key group. Raises `BadEnvelope`."""
    try:
        found = from_json(payload)
        holders = tuple(
            SlotHolder(str(id), SLOT_KINDS[SLOT_KINDS.index(kind)], int(after))
            for id, (kind, after) in found["slots"].items()
        )
        moving = tuple(str(id) for id in found.get("admitting", ()))
        return GroupState(holders, moving, int(found["admitted_up_to"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadEnvelope(f"not the state of a key group: {error}") from error
