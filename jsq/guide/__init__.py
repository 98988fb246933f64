"""The user guide: the Markdown pages of this folder, which every installation of jsq contains.

The pages are plain Markdown, so a code host shows them as well as `jsq guide` does. The functions here find,
list and search them. They import nothing heavy, and only `jsq guide` imports them.
"""

import difflib
import functools
import importlib.resources
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jsq.errors import BadOption, UsageError
from jsq.guide.glossary import GLOSSARY

AREAS: dict[str, tuple[str, ...]] = {
    "First steps": ("start", "tutorial", "concepts"),
    "Tasks": (
        *("tasks", "values", "layout", "lifespan", "dependencies", "middleware"),
        *("executors", "checkpoints", "retries", "testing", "immediate"),
    ),
    "Jobs": ("blocking", "jobs", "scheduling", "expiry", "uniqueness", "bulk", "workflows"),
    "Queues": ("queues", "limits"),
    "Frameworks": ("embedding", "fastapi", "web-status", "flask", "django", "django-tasks"),
    "In production": (
        *("deploy", "operations", "logs", "tracing", "tracing-example", "security", "troubleshooting"),
        *("cookbook", "cookbook-operations"),
    ),
    "Evidence": ("guarantees", "performance", "comparison", "comparison-failures", "internals"),
    "Questions": ("queue-broker-worker", "brokers", "database-queues", "workflow-engines", "exactly-once"),
    "Moving to jsq": (
        *(
            "moving",
            "moving-hooks",
            "moving-from-celery",
            "moving-from-rq",
            "moving-from-saq",
            "moving-from-huey",
        ),
        *("moving-from-apscheduler", "moving-from-taskiq", "moving-from-dramatiq", "moving-from-arq"),
    ),
    "Reference": (
        *("reference", "reference-options", "reference-settings", "reference-submit", "reference-job"),
        "reference-workflow",
        *("reference-queue", "reference-worker", "reference-metrics"),
    ),
}
"""The areas of the guide, each with its pages in the order in which a reader needs them."""

OTHER_AREA = "More"
"""The area of pages that `AREAS` does not name."""

_FENCE = "```"


@dataclass(frozen=True, slots=True)
class GuidePage:
    """One page of the guide."""

    name: str
    area: str
    text: str

    @property
    def title(self) -> str:
        return self.text.partition("\n")[0].lstrip("# ")

    @property
    def summary(self) -> str:
        """The first sentence of the page, without the marks of Markdown."""
        paragraph = " ".join(self.text.split("\n\n")[1].split())
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph).replace("*", "").replace("`", "")
        return re.split(r"(?<=[.!?])\s", plain, maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class GuideHit:
    """A line of the guide that contains what was searched for. `section` is the line of its heading."""

    page: str
    heading: str
    line: int
    text: str
    section: int = 0

    @property
    def is_heading(self) -> bool:
        return self.text.startswith("#") and self.text.lstrip("# ") == self.heading


@functools.cache
def guide_pages() -> tuple[GuidePage, ...]:
    """Every page, in the order of the areas."""
    folder = importlib.resources.files(__name__)
    texts = {
        entry.name.removesuffix(".md"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".md")
    }
    places = {name: area for area, names in AREAS.items() for name in names}
    ordered = [name for name in places if name in texts] + sorted(texts.keys() - places.keys())
    return tuple(GuidePage(name, places.get(name, OTHER_AREA), texts[name]) for name in ordered)


def guide_page(name: str) -> GuidePage:
    """The page of a name. Raises `UsageError`, with the name that is most like it, if there is none."""
    pages = {page.name: page for page in guide_pages()}
    if name in pages:
        return pages[name]
    if (meaning := GLOSSARY.get(name.replace("-", " "))) is not None:
        raise UsageError(
            f"no such page '{name}'; the term means: {meaning}; `jsq guide concepts` has all terms"
        )
    near = difflib.get_close_matches(name, pages, n=1)
    meant = f"is '{near[0]}' meant? " if near else ""
    raise UsageError(
        f"no such page '{name}'; {meant}`jsq guide` lists the pages, `jsq guide --search WORDS` finds words"
    )


def search_guide(words: str) -> list[GuideHit]:
    """The lines that contain all the words: headings first, then lines, then the best line of a section.

    A word is a whole word, in any case, and may have an ending: `letter` finds "letters". A section counts if
    it contains all the words in several lines. If that finds nothing, a word may also be a part of a word.
    Raises `BadOption` if there are no words.
    """
    wanted = words.split()
    if not wanted:
        raise BadOption("search", words, "must have at least one word")
    for pattern_of in (word_pattern, re.escape):
        patterns = [re.compile(pattern_of(word), re.IGNORECASE) for word in wanted]
        if hits := [hit for page in guide_pages() for hit in _search_page(page, patterns)]:
            return [hit for _, hit in sorted(hits, key=lambda found: found[0])]
    return []


def word_pattern(word: str) -> str:
    """The pattern of a whole word with an ending of three letters at most; `retry` finds "retries" too."""
    stem = re.escape(word)
    if word.lower().endswith("y") and len(word) > 2:
        stem = f"{re.escape(word[:-1])}(?:y|ie)"
    return rf"(?<!\w){stem}\w{{0,3}}(?!\w)"


def _search_page(page: GuidePage, patterns: Sequence[re.Pattern[str]]) -> Iterator[tuple[int, GuideHit]]:
    """The hits on a page, each with its rank: 0 for a heading, 1 for a line, 2 for a section."""
    for _, section in itertools.groupby(_lines(page), key=lambda hit: hit.section):
        lines = list(section)
        counts = [sum(pattern.search(line.text) is not None for pattern in patterns) for line in lines]
        complete = [line for line, count in zip(lines, counts, strict=True) if count == len(patterns)]
        for line in complete:
            yield int(not line.is_heading), line
        text = "\n".join(line.text for line in lines)
        if not complete and all(pattern.search(text) for pattern in patterns):
            yield 2, lines[counts.index(max(counts))]


def _lines(page: GuidePage) -> Iterator[GuideHit]:
    """Every line of a page, under its heading. A line of code that starts with `#` is no heading."""
    heading, section, in_code = page.title, 1, False
    for number, line in enumerate(page.text.splitlines(), 1):
        if line.startswith(_FENCE):
            in_code = not in_code
        elif line.startswith("#") and not in_code:
            heading, section = line.lstrip("# "), number
        yield GuideHit(page.name, heading, number, line.strip(), section)
