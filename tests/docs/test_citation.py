"""CITATION.cff is read by machines: it holds what the format requires, and the version is the package's."""

from __future__ import annotations

from pathlib import Path

import yaml

import nnunet_kd


def test_citation() -> None:
    citation = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == nnunet_kd.__version__
    assert citation["cff-version"] == "1.2.0"
    for work in (citation, citation["preferred-citation"], *citation["references"]):
        assert work["title"]
        assert all(author.get("name") or author["family-names"] for author in work["authors"])
    assert citation["message"]
    assert all(work["type"] == "article" for work in (citation["preferred-citation"], *citation["references"]))
