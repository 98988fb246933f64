"""The number of examples of a property: a third in the default tier, and all of them in the proof tier.

The environment variable `EXAMPLES=all` asks for all of them; `.ci/proof` sets it.
"""

import os

from hypothesis import settings

LEAST = 20


def examples(count: int) -> settings:
    """The settings of a property that has `count` examples in all, and no time limit for one of them."""
    shown = count if os.environ.get("EXAMPLES") == "all" else max(LEAST, count // 3)
    return settings(deadline=None, max_examples=shown)
