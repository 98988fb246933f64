"""`jsq guide`: list, show and search the pages of the guide that is installed with jsq."""

import os
import sys
from itertools import groupby
from typing import Annotated, Any

import typer

from jsq.cli.options import CommonOptions, command
from jsq.cli.printing import Form, print_message
from jsq.errors import UsageError
from jsq.guide import GuideHit, GuidePage, guide_page, guide_pages, search_guide

PAGE_COLUMNS = ("name", "title", "summary")

LESS_OPTIONS = "FRX"
"""Options of the pager `less`, unless LESS has others: leave if all fits on the screen, show colors."""

MAX_WIDTH = 110
"""The widest line of a page on a terminal."""


@command
def guide(
    session: CommonOptions,
    page: Annotated[str | None, typer.Argument(metavar="PAGE", help="show this page")] = None,
    search: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="list the lines and sections that contain all these words"),
    ] = None,
) -> None:
    """List the pages of the guide, show one, or search them.

    On a terminal a page is shown in a pager. A pipe gets its Markdown.

    \b
    jsq guide
    jsq guide retries
    jsq guide --search expiry
    """
    if page is not None and search is not None:
        raise UsageError("give a page or --search, not both")
    if search is not None:
        list_hits(session, search)
    elif page is not None:
        show_page(session, guide_page(page))
    else:
        list_pages(session)


def list_pages(session: CommonOptions) -> None:
    pages = guide_pages()
    if not session.printer.shows_tables:
        session.printer.all([listed_page(page) for page in pages], PAGE_COLUMNS, name="name")
        return
    from rich.text import Text

    console = page_console()
    width = max(len(page.name) for page in pages)
    for area, members in groupby(pages, key=lambda page: page.area):
        console.print(Text(area, "bold"))
        for page in members:
            line = Text(f"  {page.name:<{width}}  {page.title}: {page.summary}")
            line.stylize("cyan", 2, 2 + len(page.name))
            if sys.stdout.isatty():
                line.truncate(console.width, overflow="ellipsis")
            console.print(line, soft_wrap=True)
    print_message("`jsq guide PAGE` shows a page, `jsq guide --search WORDS` finds words")


def list_hits(session: CommonOptions, words: str) -> None:
    hits = search_guide(words)
    for hit in hits:
        known = {"page": hit.page, "heading": hit.heading, "line": hit.line, "text": hit.text}
        session.printer.next(known, shown_hit(hit), name="page")
    if not hits:
        print_message(f"no section of the guide contains {words!r}; `jsq guide` lists the pages")


def shown_hit(hit: GuideHit) -> str:
    return f"{hit.page}:{hit.line}  {hit.heading}: {hit.text}"


def show_page(session: CommonOptions, page: GuidePage) -> None:
    """Write Markdown to a pipe, a rendered page to a terminal, and a document in the forms of data."""
    if session.printer.form is Form.NAME:
        session.printer.one(listed_page(page), name="name")
    elif session.printer.form not in (None, Form.TABLE):
        session.printer.one(listed_page(page), more={"text": page.text}, name="name")
    elif session.printer.shows_tables:
        render_page(page)
    else:
        print(page.text, end="", flush=True)


def listed_page(page: GuidePage) -> dict[str, str]:
    return {"name": page.name, "area": page.area, "title": page.title, "summary": page.summary}


def render_page(page: GuidePage) -> None:
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", LESS_OPTIONS)
    console = page_console()
    rendered = Markdown(page.text, hyperlinks=False, code_theme="ansi_dark")
    if not sys.stdout.isatty():
        console.print(rendered)
        return
    with console.pager(styles=not console.no_color):
        console.print(rendered)


def page_console() -> Any:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = min(console.width, MAX_WIDTH)
    return console
