"""A step of a job as JSON. Empty fields are left out."""

from pydantic_core import from_json, to_json

from jsq.codec.subject_token import decode_token, encode_token
from jsq.errors import BadEnvelope
from jsq.model.checkpoint import CheckpointRecord, check_step


def encode(attempt: int, *, undone: bool = False, error: str = "", value: bytes = b"") -> bytes:
    """Encode the state of a step; `value` is JSON, and given if the step is done."""
    fields: dict[str, object] = {"attempt": attempt}
    if undone:
        fields["not_executed"] = True
    if error:
        fields["error"] = error
    body = to_json(fields)
    return body[:-1] + b',"value":' + value + b"}" if value else body


def with_number(body: bytes, number: int) -> bytes:
    """The encoded step with the number of steps that the job has started."""
    return body[:-1] + b',"number":%d}' % number


def decode(body: bytes) -> CheckpointRecord:
    """Decode a step. Raises `BadEnvelope`."""
    try:
        fields = from_json(body)
        return CheckpointRecord(
            attempt=fields["attempt"],
            done="value" in fields,
            not_executed=fields.get("not_executed", False),
            error=fields.get("error", ""),
            number=fields.get("number", 0),
            value=fields.get("value"),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadEnvelope(f"not a step of a job: {error}") from error


def step_key(name: str) -> str:
    """The key of a step among the stored values of its job. Raises `BadName`."""
    return f"once.{encode_token(check_step(name))}"


def step_name(place: str) -> str:
    """The name of the step with a key."""
    return decode_token(place.removeprefix("once."))
