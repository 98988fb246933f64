"""Named values with their types, and their JSON: pydantic checks them, encodes them and decodes them.

The JSON has what the values are made from: the aliases of a model instead of the names of its fields, no
computed fields, and the text of a `Json` field. If the values do not come back from that, because a model
writes an alias that it does not read, the JSON has the names of the fields. The decoder accepts both.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NewType

from pydantic_core import ValidationError
from typing_extensions import TypedDict

from jsq.codec.comparison import first_difference, same_value

_no_schema = re.compile(r"Unable to generate pydantic-core schema for (.*?)\. Set `arbitrary_types_allowed")


class ValueChanged(Exception):
    """A value does not come back from its JSON as it was. `place` names it, `kind` is its type."""

    def __init__(self, sent: Mapping[str, object], back: Mapping[str, object]) -> None:
        super().__init__(first_difference(sent, back))


class JsonFields:
    """Named values with their types.

    `check` takes the values and coerces them, `encode` makes JSON of checked values, `decode` makes values of
    JSON and checks them. These are functions of pydantic's core, which saves a Python call each.
    """

    __slots__ = ("_encode_by_name", "check", "decode", "encode")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        """Raises `TypeError`, `NameError` and the errors of pydantic for types that it cannot check."""
        from pydantic import ConfigDict, TypeAdapter  # late: a client without tasks does not need it

        config = ConfigDict(
            extra="forbid", ser_json_inf_nan="constants", ser_json_bytes="base64", val_json_bytes="base64"
        )
        shape = TypedDict(name, dict(fields))  # type: ignore[misc]  # noqa: UP013 -- built at run time
        shape.__pydantic_config__ = config  # type: ignore[attr-defined]  # pydantic's own name for it
        # A TypedDict's config does not reach its serializer; an adapter's does, but takes no TypedDict.
        adapter: Any = TypeAdapter(NewType("Fields", shape), config=config)  # type: ignore[arg-type]  # run time
        to_json, validate_json = adapter.serializer.to_json, adapter.validator.validate_json
        self.check = adapter.validator.validate_python
        self.encode = functools.partial(to_json, by_alias=True, round_trip=True)
        self._encode_by_name = functools.partial(to_json, by_alias=False, round_trip=True)
        self.decode = functools.partial(validate_json, by_alias=True, by_name=True)

    def proven(self, checked: Mapping[str, object], packed: bytes) -> bytes:
        """JSON from which the checked values come back as they are. `packed` is their JSON with aliases.

        Raises `ValueChanged`, `ValidationError` if there is none.
        """
        back = self._decoded(packed)
        if back is not None and same_value(checked, back):
            return packed
        named: bytes = self._encode_by_name(checked)
        again = self.decode(named)
        if same_value(checked, again):
            return named
        raise ValueChanged(checked, again if back is None else back)

    def _decoded(self, packed: bytes) -> Any:
        try:
            return self.decode(packed)
        except ValidationError:
            return None


def explain_schema(error: BaseException) -> str:
    """Why pydantic cannot check a type, in one line."""
    reason = str(error).splitlines()[0]
    if found := _no_schema.match(reason):
        return f"pydantic has no JSON form of {found[1]}; use a type that it knows, such as a dataclass"
    return reason
