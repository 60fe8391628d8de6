"""Fail on pages that are hard to read: sentences over 35 words, 15 words on average, 1,500 words a page.

    python docs/check_prose.py             # every page of the project
    python docs/check_prose.py FILE...     # these pages, whether exempt or not

Words are counted without code blocks, tables, headings, formulas, pictures and the targets of links; `inline code` and a
formula in a line are one word each. A sentence ends with its list item or paragraph. Exit code 1 if a page is too long.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
MEAN_WORDS = 15
LONGEST_SENTENCE = 35
LONGEST_PAGE = 1500

CHECKED = ("README.md", "CONTRIBUTING.md", "runtime/README.md", "docs/*.md")
# not checked at all
EXEMPT = frozenset(
    {
        "docs/reference-api.md",  # written by docs/write_reference.py
        "docs/reference-commands.md",  # likewise
        "docs/reference-recipes.md",  # likewise
        "docs/reference-settings.md",  # likewise
    }
)
# benchmarks/results/**/*.md are records of what was measured and are not checked.
# A reference may be as long as what it lists.
ANY_LENGTH = "docs/reference-*"

CODE = "\N{OBJECT REPLACEMENT CHARACTER}x"  # stands for inline code and formulas: one word, never the end of a sentence
ABBREVIATIONS = ("e.g.", "i.e.", "et al.", "etc.", "cf.", "vs.", "Fig.", "Eq.", "Sec.", "No.", "approx.", "Dr.")
# names such as nnU-Net begin sentences with a small letter; an ellipsis ends one only before a capital
SENTENCE_END = re.compile(r"(?:(?<!\.)[.!?]|(?<=\.\.)\.(?=\s+[A-Z]))[\"')\]»”]*(?=\s)")
HTML = re.compile(r"<!--.*?-->|<[^>]*>", re.DOTALL)
FORMULA = re.compile(r"\$[^$\n]+\$")


@dataclass(frozen=True)
class Sentence:
    """One sentence, with the line (from 1) on which it starts."""

    line: int
    text: str

    @property
    def words(self) -> int:
        """Parts between spaces that hold a letter or digit."""
        return sum(any(character.isalnum() for character in part) for part in self.text.split())


def sentences(markdown: str) -> list[Sentence]:
    """The sentences of a page, in its order, without what is not prose."""
    front = re.match(r"---\n.*?\n---\n", markdown, re.DOTALL)
    if front:  # keep the number of lines
        markdown = "\n" * front.group().count("\n") + markdown[front.end() :]
    found: list[Sentence] = []
    for line, text in _paragraphs(MarkdownIt("commonmark").enable("table").parse(markdown)):
        found += _split(line, text)
    return [sentence for sentence in found if sentence.words]


def _paragraphs(tokens: Sequence[Token]) -> Iterator[tuple[int, str]]:
    skipped = 0  # how many tables and headings are open
    for token in tokens:
        if token.type in ("table_open", "heading_open"):
            skipped += 1
        elif token.type in ("table_close", "heading_close"):
            skipped -= 1
        elif token.map and token.type == "html_block":
            yield token.map[0] + 1, HTML.sub(lambda tag: "\n" * tag.group().count("\n"), token.content)
        elif token.map and token.type == "inline" and not skipped and not token.content.startswith("$$"):
            yield token.map[0] + 1, _text(token.children or [])


def _text(children: Sequence[Token]) -> str:
    parts = []
    for child in children:
        if child.type == "text":
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type == "code_inline":
            parts.append(CODE)
    return FORMULA.sub(CODE, "".join(parts))


def _split(line: int, text: str) -> Iterator[Sentence]:
    start = 0
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    ends = [end for end in ends if not text[:end].rstrip("\"')]»”").endswith(ABBREVIATIONS)]
    for end in [*ends, len(text)]:
        part = text[start:end]
        first = start + len(part) - len(part.lstrip())
        yield Sentence(line + text.count("\n", 0, first), " ".join(part.split()))
        start = end


def complaints(name: str, markdown: str, any_length: bool = False) -> list[str]:
    """What is too long on a page, one line each, beginning with `name:line`.

    Args:
        name: How the page is called in the complaints.
        markdown: Its text.
        any_length: Leave the length of the page as a whole alone.
    """
    found = sentences(markdown)
    words = sum(sentence.words for sentence in found)
    complaints = [
        f"{name}:{sentence.line}: a sentence of {sentence.words} words, at most {LONGEST_SENTENCE}: "
        + sentence.text.replace(CODE, "`…`")
        for sentence in found
        if sentence.words > LONGEST_SENTENCE
    ]
    if found and words > MEAN_WORDS * len(found):
        longest = sorted(found, key=lambda sentence: -sentence.words)[:3]
        lines = ", ".join(f"line {sentence.line} ({sentence.words})" for sentence in longest)
        complaints.append(
            f"{name}:1: {words / len(found):.1f} words in a sentence on average, at most {MEAN_WORDS}; longest: {lines}"
        )
    if words > LONGEST_PAGE and not any_length:
        complaints.append(f"{name}:1: {words} words, at most {LONGEST_PAGE}: split the page or move tables and logs")
    return complaints


def _pages() -> list[Path]:
    found = [page for pattern in CHECKED for page in sorted(ROOT.glob(pattern))]
    return [page for page in found if page.relative_to(ROOT).as_posix() not in EXEMPT]


def main(arguments: Sequence[str]) -> int:
    """Check the named pages, or all; print what is too long; return the exit code."""
    failed = 0
    pages = [Path(argument) for argument in arguments] or _pages()
    for page in pages:
        absolute = page.resolve()
        name = absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else str(page)
        try:
            markdown = page.read_text(encoding="utf-8")
        except OSError as error:
            print(f"{name}: cannot be read ({error.strerror}): name a Markdown file", file=sys.stderr)
            return 2
        found = complaints(name, markdown, any_length=Path(name).match(ANY_LENGTH))
        print(*found, sep="\n", end="\n" if found else "")
        failed += bool(found)
    print(f"{len(pages)} pages, {failed} hard to read")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
