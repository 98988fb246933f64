"""The sources of a stream: when the server last received something from them."""

import math

from jsq.transport.jetstream import JsonObject


def silence_of(info: JsonObject | None) -> float:
    """Seconds since the server received something from each source of a stream, by its report.

    Infinity if a source has sent nothing yet. A server that has just started reports no sources.
    """
    sources = (info or {}).get("sources") or ()
    return max((one["active"] / 1e9 if one["active"] >= 0 else math.inf for one in sources), default=math.inf)
