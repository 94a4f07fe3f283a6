"""Words from records stay words: Markdown is read by a parser and LaTeX by a small reader, and both show the text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from kontext_fast.analysis.comparison import compare
from kontext_fast.records.store import ResultStore
from kontext_fast.report import templates
from kontext_fast.report.output.comparison_table import markdown as comparison
from kontext_fast.report.output.publish import publish
from kontext_fast.report.text.markup import (
    Latex,
    Markdown,
    bullets,
    code_span,
    latex,
    latex_code,
    link,
    markdown,
    paragraphs,
    picture,
    plain,
    table,
)
from tests.records.builder import result, timed

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = (
    "`<script>alert(1)</script>`",
    "``` `` `",
    "</td><img src=x onerror=alert(1)>",
    "a|b\n| c |\n---\n# d",
    "- x",
    "12. y",
    "===",
    "+",
    "&lt;b&gt; &#60; &amp",
    "[x](javascript:alert(1)) ![y](z) <http://a.b>",
    "_a_ a_b _ *c* **d** ~~e~~ !`",
    "\\`\\",
    "\x00\x07\x1b[31m\u2028\u200e\ud800",
)
WORDS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(alphabet=st.sampled_from("`|_*[]()<>&;#!~\\-+=.'\"$%^{},? \n\t1ab:/é漢"), max_size=24),
    st.text(max_size=24),
)


def tokens(text: str) -> list[Token]:
    """Of the whole document, those inside of paragraphs included."""
    return [inner for token in PARSER.parse(text) for inner in (token, *(token.children or ()))]


def shown(text: str) -> tuple[set[str], str]:
    """Types of what a document has besides plain text, and the text that it shows."""
    found = tokens(text)
    kinds = {token.type for token in found} - {"inline", "text", "text_special"}
    return kinds, "".join(token.content for token in found if token.type in ("text", "text_special", "code_inline"))


def hostile(test):  # type: ignore[no-untyped-def]
    """Try every hostile text besides those that hypothesis finds."""
    for words in HOSTILE:
        test = example(words)(test)
    return given(WORDS)(test)


@hostile
def test_escaped_words_are_one_paragraph_of_plain_text(words: str) -> None:
    kinds, text = shown(markdown(words))
    assert kinds <= {"paragraph_open", "paragraph_close"}
    assert text == plain(words)


@hostile
def test_words_in_lists_headings_and_emphasis_stay_plain(words: str) -> None:
    kinds, text = shown(bullets([words, "next"]))
    structure = {"bullet_list", "list_item", "paragraph"}
    assert kinds <= {f"{name}_{end}" for name in structure for end in ("open", "close")}
    assert text == f"{plain(words)}next"
    kinds, text = shown(Markdown("# a {} z").format(words))
    assert kinds == {"heading_open", "heading_close"}
    kinds, _ = shown(Markdown("**a{}z**").format(words))
    assert kinds == {"paragraph_open", "paragraph_close", "strong_open", "strong_close"}


@hostile
def test_words_in_a_cell_leave_the_table_whole(words: str) -> None:
    found = tokens(table(["a", "b"], [[words, 1], ["c", words]]))
    assert sum(token.type == "td_open" for token in found) == 4
    assert not {"html_inline", "html_block", "code_inline", "link_open", "image"} & {token.type for token in found}
    cells = [token.content for token in PARSER.parse(table(["a"], [[words]])) if token.type == "inline"]
    assert len(cells) == 2
    # A cell holds what a paragraph holds, without the backslashes before bars, which the table takes off.
    assert shown(cells[1])[1] == plain(words)


@hostile
def test_code_span_shows_its_words_and_nothing_else(words: str) -> None:
    kinds, text = shown(Markdown("before {} after").format(code_span(words)))
    assert kinds - {"code_inline"} == {"paragraph_open", "paragraph_close"}
    assert text == (f"before {plain(words)} after" if plain(words) else "before  after".replace("  ", "  "))


@hostile
def test_link_and_picture_hold_their_label_and_address(words: str) -> None:
    kinds, text = shown(link(words, f"results/{words}.json"))
    assert kinds == {"paragraph_open", "paragraph_close", "link_open", "link_close"}
    assert text == plain(words)
    (image,) = [token for token in tokens(picture(words, "a b.png")) if token.type == "image"]
    assert image.attrs["src"] == "a%20b.png"
    assert image.content == str(markdown(words))


LATEX_WORDS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textasciigrave{}": "`",
    **{f"\\{letter}": letter for letter in "&%$#_{}"},
    "{}": "",
}


def read_latex(text: str) -> str:
    """The letters that TeX would set. Raises AssertionError for anything but letters and known words."""
    words = sorted(map(re.escape, LATEX_WORDS), key=len, reverse=True)
    rest = re.sub("|".join(words), "", text)
    assert not re.search(r"[\\{}$&#^_~%`<>|\x00-\x1f]", rest), rest
    assert "--" not in text
    assert "''" not in text
    return re.sub("|".join(words), lambda found: LATEX_WORDS[found[0]], text)


@hostile
def test_escaped_latex_sets_the_same_letters(words: str) -> None:
    assert read_latex(latex(words)) == plain(words)
    code = latex_code(words)
    assert code.startswith(r"\texttt{")
    assert read_latex(code.removeprefix(r"\texttt{").removesuffix("}").replace(r"\allowbreak ", "")) == plain(words)


def test_markup_is_escaped_once() -> None:
    bold = Markdown("**{}**").format("*")
    assert bold == r"**\***"
    assert markdown(bold) is bold
    assert paragraphs([bold, None, "*"]) == "**\\***\n\n\\*"
    assert latex(Latex(r"\LaTeX{}")) == r"\LaTeX{}"


@pytest.mark.parametrize("file", ["blog.md.j2", "business.md.j2", "paper.tex.j2"])
def test_templates_trust_no_expression(file: str) -> None:
    source = (Path(templates.__file__).parent / "template" / file).read_text()
    assert "|safe" not in source.replace(" ", "")
    assert "autoescape" not in source


def test_documents_show_hostile_records_as_words(tmp_path: Path) -> None:
    # Pydantic stores no lone surrogate.
    words = [text.removesuffix("\ud800") for text in HOSTILE]
    runs = [timed(name, round_, [1.0, 1.0]) for name in ("baseline", "other") for round_ in range(2)]
    for number, text in enumerate(words):
        run = timed("other", number % 2, [1.0, 1.0])
        runs.append(run.model_copy(update={"preset": text, "run_id": f"{number} {text}", "labels": (text,)}))
    records = result(runs).model_copy(update={"command": f"kontext bench {' '.join(words)}"})
    store = ResultStore(tmp_path / "out")
    store.write(records)
    for audience in ("blog", "business"):
        found = tokens(publish(store.folder, audience=audience).document.read_text())  # type: ignore[arg-type]
        assert not {"html_inline", "html_block", "link_open"} & {token.type for token in found}
    paper = publish(store.folder, audience="paper").document.read_text()
    assert all(latex(text) in paper for text in words)
    compared = comparison(compare(records, records, 0.02), records, records, 0.02)
    assert not {"html_inline", "html_block", "link_open", "code_inline"} & {token.type for token in tokens(compared)}
    assert all(markdown(text) in compared for text in words)
