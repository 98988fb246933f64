"""A step of a job as JSON. What is empty is left out."""

from pydantic_core import from_json, to_json

from jsq.codec.subject_token import decode_token, encode_token
from jsq.errors import BadEnvelope
from jsq.model.checkpoint import CheckpointRecord, check_step


def encode(attempt: int, *, undone: bool = False, error: str = "", value: bytes = b"") -> bytes:
    """Write what is known of a step; `value` is JSON, there where the step is done."""
    told: dict[str, object] = {"attempt": attempt}
    if undone:
        told["not_executed"] = True
    if error:
        told["error"] = error
    body = to_json(told)
    return body[:-1] + b',"value":' + value + b"}" if value else body


def with_number(body: bytes, number: int) -> bytes:
    """The same with the number of steps that the job has begun."""
    return body[:-1] + b',"number":%d}' % number


def decode(body: bytes) -> CheckpointRecord:
    """Read a step. Raises `BadEnvelope`."""
    try:
        told = from_json(body)
        return CheckpointRecord(
            attempt=told["attempt"],
            done="value" in told,
            not_executed=told.get("not_executed", False),
            error=told.get("error", ""),
            number=told.get("number", 0),
            value=told.get("value"),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadEnvelope(f"not a step of a job: {error}") from error


def step_key(name: str) -> str:
    """The place of a step among what its job keeps. Raises `BadName`."""
    return f"once.{encode_token(check_step(name))}"


def step_name(place: str) -> str:
    """The name of the step at a place."""
    return decode_token(place.removeprefix("once."))
