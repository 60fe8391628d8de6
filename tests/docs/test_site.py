"""The site builds without a warning, and its pages need no net."""

from __future__ import annotations

import re

import build_site
import pytest
import yaml


def test_the_site_builds_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    assert build_site.main() == 0, capfd.readouterr().out
    settings = (build_site.SITE / "reference-settings.html").read_text()
    assert "decay per iteration of an averaged student" in settings
    interface = (build_site.SITE / "reference-api.html").read_text()
    assert 'id="nnunet_kd.losses.DCDLoss.forward"' in interface
    assert "[ChannelProjection" not in interface


def test_every_page_is_in_the_navigation_and_the_index() -> None:
    pages = {path.name for path in (build_site.ROOT / "docs").glob("*.md")}
    navigation = set(re.findall(r": (\S+\.md)$", (build_site.ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert navigation - {"CHANGELOG.md", "CONTRIBUTING.md"} == pages
    index = (build_site.ROOT / "docs" / "index.md").read_text()
    assert {page for page in pages if f"({page})" not in index} == {"index.md"}


def test_the_configuration_fetches_no_fonts() -> None:
    assert yaml.safe_load((build_site.ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("docs/how-to-deploy.md", "[a](methods.md#b)", "[a](methods.md#b)"),
        ("docs/index.md", "[a](../CONTRIBUTING.md)", "[a](CONTRIBUTING.md)"),
        ("CONTRIBUTING.md", "[a](docs/index.md#b)", "[a](index.md#b)"),
        ("CONTRIBUTING.md", "[a](README.md)", "[a](index.md)"),
        ("docs/index.md", "[a](../nnunet_kd/errors.py)", "a (`nnunet_kd/errors.py`)"),
        ("docs/index.md", "[a](../benchmarks/results)", "a (`benchmarks/results`)"),
        ("docs/index.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("docs/index.md", "![a](images/a.png)", "![a](images/a.png)"),
        ("docs/index.md", "[a](../missing.md)", "[a](../missing.md)"),
    ],
)
def test_links_out_of_the_docs(page: str, link: str, expected: str) -> None:
    staged = frozenset({"docs/index.md", "CONTRIBUTING.md"})
    assert build_site.with_links_of_the_site(link, page, staged) == expected


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<script src="https://unpkg.com/x"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example.org/css">', True),
        ('<img alt="a" src=http://example.org/a.png>', True),
        ('<pre class="mermaid"><code>', True),
        ('<a href="https://example.org">', False),
        ('<link rel="canonical" href="https://example.org">', False),
        ('<script src="assets/x.js"></script>', False),
    ],
)
def test_what_a_page_fetches(html: str, fetches: bool) -> None:
    assert bool(build_site.fetched_from_the_net(html)) == fetches
