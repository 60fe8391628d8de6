"""Build the site from the pages of the repository: `make docs`, result in build/site/index.html.

Pages of docs/ lie at the site's root. What they link to elsewhere in the repository comes along if it is a page, and is named
instead of linked if it is code or a folder. The build fails on every warning, and on what a page would fetch from the net.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
STAGED = (
    "docs/**/*.md",
    "docs/images/*",
    "docs/site.css",
    "benchmarks/results/**/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|icon|preconnect|preload))[^>]*href=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<(?:pre|div) class=["']?mermaid"""  # the theme takes Mermaid from a server: draw in text or SVG instead
)


def place(path: str) -> str:
    """Where a file of the repository lies in the site, both from the root of each."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def with_links_of_the_site(markdown: str, page: str, staged: frozenset[str]) -> str:
    """A page with its links to files of the repository changed to where they lie in the site.

    Args:
        markdown: the page.
        page: its place in the repository.
        staged: the places in the repository of all that the site has.
    """

    def changed(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = os.path.normpath(Path(page).parent / target)
        if ":" in target or not (ROOT / path).exists():
            return link[0]
        if path not in staged and path != "README.md":
            return f"{text} (`{path}`)"
        return f"[{text}]({os.path.relpath(place(path), Path(place(page)).parent)}{anchor})"

    return LINK.sub(changed, markdown)


def stage() -> None:
    """Copy what the site is built from to build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    files = {path.relative_to(ROOT).as_posix() for pattern in STAGED for path in ROOT.glob(pattern)}
    for name in files:
        copy = PAGES / place(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            markdown = (ROOT / name).read_text(encoding="utf-8")
            copy.write_text(with_links_of_the_site(markdown, name, frozenset(files)), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / name, copy)


def fetched_from_the_net(html: str) -> list[str]:
    """Parts of a built page that make a browser fetch something from another machine."""
    return [match[0] for match in FETCHED.finditer(html)]


def main() -> int:
    """Build; return the exit code."""
    stage()
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    finished = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", finished.stdout).partition("Traceback")[
        0
    ]  # what follows says nothing about the pages
    print(said.rstrip())
    if finished.returncode or "griffe:" in said:  # the reader of docstrings warns, but stops nothing
        return finished.returncode or 1
    print(f"written: {SITE / 'index.html'}; with search: python -m http.server --directory {SITE.relative_to(ROOT)}")
    failed = 0
    for page in sorted(SITE.rglob("*.html")):
        for part in fetched_from_the_net(page.read_text(encoding="utf-8")):
            failed = 1
            print(f"{page.relative_to(ROOT)} fetches from the net: {part}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
