"""The page: sections in, one HTML file and one JSON file out.

The HTML asks for nothing: no script, no font, no picture from elsewhere, and its content security
policy forbids them. It follows the reader's light or dark scheme and holds from 360 pixels upwards.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probgen.errors import DeclarationError
from probgen.evaluation.page.blocks import Block
from probgen.evaluation.page.text import escape, inline, plain, slug
from probgen.evaluation.style import CSS
from probgen.language.declared import checked
from probgen.records import atomic

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: the heading; its slug is the anchor, and the key in the JSON file.
        blocks: in order.
        text: a paragraph before them.
    """

    title: str
    blocks: tuple[Block, ...]
    text: str

    @checked
    def __init__(self, title: str, *blocks: Block, text: str = "") -> None:
        object.__setattr__(self, "title", title)
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "text", text)

    @property
    def key(self) -> str:
        return slug(self.title)

    def html(self) -> str:
        intro = f"<p>{inline(self.text)}</p>" if self.text else ""
        body = "\n".join(block.html(f"{self.key}-{i}") for i, block in enumerate(self.blocks))
        return (
            f'<section id="{self.key}"><h2>{inline(self.title)}</h2>{intro}\n'
            f'<div class="blocks">{body}</div></section>'
        )

    def data(self) -> dict[str, Any]:
        """The blocks' data, merged; a block without data adds nothing."""
        out: dict[str, Any] = {}
        for block in self.blocks:
            out |= block.data()
        return out


class Report:
    """A page that grows by sections.

    Args:
        title: of the page.
        lead: a sentence or two under the title.
        facts: what goes into the JSON file beside the sections' data (versions, seed, command).

    Example:
        >>> from probgen.evaluation.page import Paragraph
        >>> page = Report("Coins").add(Section("Result", Paragraph("Heads, **mostly**.")))
        >>> "<strong>mostly</strong>" in page.html()
        True
    """

    @checked
    def __init__(self, title: str, lead: str = "", facts: Mapping[str, Any] | None = None) -> None:
        self.title, self.lead = title, lead
        self.facts: dict[str, Any] = dict(facts or {})
        self.sections: list[Section] = []

    @checked
    def add(self, section: Section) -> Report:
        """Puts a section at the end and gives the report back.

        Raises:
            DeclarationError: a section of that title is there already.
        """
        if section.key in {s.key for s in self.sections}:
            raise DeclarationError(
                f"report: got a second section called {section.title!r}, expected one of a name; "
                "give it another title."
            )
        self.sections.append(section)
        return self

    def html(self) -> str:
        """The whole page."""
        links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in self.sections)
        body = "\n".join(section.html() for section in self.sections)
        lead = f'<p class="lead">{inline(self.lead)}</p>' if self.lead else ""
        nav = f'<nav aria-label="Sections">{links}</nav>' if len(self.sections) > 2 else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
            f'<title>{escape(self.title)}</title>\n<link rel="icon" href="data:,">\n'
            f"<style>\n{CSS}</style></head>\n<body>\n"
            f"<header><h1>{inline(self.title)}</h1>{lead}{nav}</header>\n"
            f"<main>\n{body}\n</main>\n</body></html>\n"
        )

    def data(self) -> dict[str, Any]:
        """What the page shows, as plain values: facts, and each section's data by its key."""
        sections = {s.key: found for s in self.sections if (found := s.data())}
        return plain({"title": self.title, **self.facts, "sections": sections})

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the page to `path` and the data to the same name with `.json`.

        Raises:
            SaveError: the files cannot be written; what stood there before is untouched.
        """
        target = atomic.at(path)
        text = json.dumps(self.data(), indent=1, allow_nan=False, ensure_ascii=False)
        atomic.put_text(target.with_suffix(".json"), text + "\n")
        atomic.put_text(target, self.html())
        return Path(path)
