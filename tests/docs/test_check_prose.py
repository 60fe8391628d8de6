"""The check of sentence and page length: what counts as a sentence and a word, and what fails."""

from __future__ import annotations

from pathlib import Path

import check_prose
import pytest


def counted(markdown: str) -> list[tuple[int, int]]:
    """(line, words) of each sentence."""
    return [(sentence.line, sentence.words) for sentence in check_prose.sentences(markdown)]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("One two three. Four five!", [(1, 3), (1, 2)]),
        ("Wrapped over\ntwo lines. Starts\non the second.", [(1, 4), (2, 4)]),
        ("It ends. nnU-Net begins small.", [(1, 2), (1, 3)]),
        ("Some, e.g. this one, and Fig. 3 stay whole.", [(1, 9)]),
        ("Version 2.8.0 is one word ... and goes on.", [(1, 8)]),
        ("(A whole sentence.) Another one.", [(1, 3), (1, 2)]),
        ("Call `a long. piece of code` now.", [(1, 3)]),
        ("The [text of a link](https://example.org/a-b?c=d) counts - its target not.", [(1, 9)]),
        ("![a picture. has no words](images/x.png)", []),
        ("# A heading has none\n\nBut this has.", [(3, 3)]),
        ("| a | table |\n|-|-|\n| has | none |\n\nAfter it.", [(5, 2)]),
        ("```bash\nno words. here\n```\n\n    nor here\n", []),
        ("- an item\n- another one\n\n1. Numbered item.", [(1, 2), (2, 2), (4, 2)]),
        ("---\ntitle: none\n---\nText here.", [(4, 2)]),
        ("<details><summary>Three more words</summary>\n\nInside it.\n\n</details>", [(1, 3), (3, 2)]),
        ("<!-- nothing here -->\n", []),
        ("A formula $x = a + b$ is one.", [(1, 5)]),
        ("$$\nx = a + b\n$$", []),
        ("> Quoted words count.", [(1, 3)]),
    ],
)
def test_counts_sentences_and_words(markdown: str, expected: list[tuple[int, int]]) -> None:
    assert counted(markdown) == expected


def sentence_of(words: int) -> str:
    return " ".join(["word"] * words) + "."


def test_a_sentence_over_the_limit_is_named_with_its_line() -> None:
    page = "# Title\n\nShort one. " * 3 + f"\n\n{sentence_of(check_prose.LONGEST_SENTENCE)}\n\n"
    assert check_prose.complaints("page.md", page) == []
    (complaint,) = check_prose.complaints(
        "page.md", "Short one. " * 9 + f"\n\n{sentence_of(check_prose.LONGEST_SENTENCE + 1)}"
    )
    assert complaint.startswith("page.md:3: a sentence of 36 words")
    assert "word word" in complaint


def test_the_mean_of_a_page_is_held() -> None:
    exactly = f"{sentence_of(check_prose.MEAN_WORDS)} " * 4
    assert check_prose.complaints("page.md", exactly) == []
    (complaint,) = check_prose.complaints("page.md", exactly + "\n\n" + sentence_of(check_prose.MEAN_WORDS + 1))
    assert "15.2 words in a sentence on average" in complaint
    assert "line 3 (16)" in complaint


def test_the_length_of_a_page_is_held_except_of_references() -> None:
    page = f"{sentence_of(10)} " * (check_prose.LONGEST_PAGE // 10)
    assert check_prose.complaints("page.md", page) == []
    page += "One more."
    assert "1502 words" in check_prose.complaints("page.md", page)[0]
    assert check_prose.complaints("page.md", page, any_length=True) == []


def test_the_command_checks_named_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("A short sentence.\n")
    bad.write_text(sentence_of(40))
    assert check_prose.main([str(good)]) == 0
    assert check_prose.main([str(good), str(bad)]) == 1
    assert f"{bad}:1: a sentence of 40 words" in capsys.readouterr().out
    assert check_prose.main([str(tmp_path / "missing.md")]) == 2


def test_exempt_pages_exist() -> None:
    assert [page for page in check_prose.EXEMPT if not (check_prose.ROOT / page).is_file()] == []
