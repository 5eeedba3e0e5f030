"""The documentation's site: links between pages, docstrings as the reference reads them, checks of the HTML."""

import re
import sys
from types import SimpleNamespace

import pytest
import yaml
from support import ROOT, blocks, load_script

import dmpo_trl
from dmpo_trl import data, evaluation, losses, recommend


@pytest.fixture(scope="module")
def pages():
    with load_script("scripts/docs/repository_pages.py") as script:
        yield script


@pytest.fixture
def links_of_the_site(pages):
    return pages.links_of_the_site


@pytest.fixture
def docstrings(monkeypatch):
    """The extension of griffe, which only the environment of `make docs` has; its functions need none of it."""
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Module=object, Object=object))
    with load_script("scripts/docs/docstrings.py") as script:
        yield script


@pytest.fixture(scope="module")
def problems():
    with load_script("scripts/docs/check_site.py") as script:
        yield script.problems


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("cost.md", "losses.md#optional-columns", "losses.md#optional-columns"),
        ("cost.md", "images/step.svg", "images/step.svg"),
        ("cost.md", "../benchmarks/README.md#ranking", "benchmarks.md#ranking"),
        ("tutorials/own-table.md", "../index.md#install", "../index.md#install"),
        ("tutorials/own-table.md", "../../CONTRIBUTING.md", "../contributing.md"),
        ("contributing.md", "docs/compatibility.md", "compatibility.md"),
        ("benchmarks.md", "../docs/cost.md#how-batches-are-formed", "cost.md#how-batches-are-formed"),
        ("bad-input-cases.md", "../../docs/bad-input.md", "bad-input.md"),
        ("cost.md", "#the-formulas", "#the-formulas"),
        ("cost.md", "https://arxiv.org/abs/2405.16127", "https://arxiv.org/abs/2405.16127"),
        # To no file: MkDocs reports what it does not find
        ("cost.md", "../no/such/file.md", "../no/such/file.md"),
        ("cost.md", "no-such-page.md", "no-such-page.md"),
    ],
)
def test_a_link_leads_to_the_same_page_on_the_site(links_of_the_site, page, link, there):
    assert links_of_the_site(f"See [here]({link}).", page) == f"See [here]({there})."


def test_a_link_to_another_file_is_text_until_the_repository_has_an_address(links_of_the_site):
    text = "Measured in [step.csv](results/step.csv)."
    assert links_of_the_site(text, "benchmarks.md") == "Measured in step.csv."
    with_address = links_of_the_site(text, "benchmarks.md", "https://example.org/dmpo-trl/")
    assert (
        with_address == "Measured in [step.csv](https://example.org/dmpo-trl/blob/main/benchmarks/results/step.csv)."
    )


def test_links_in_code_stay(links_of_the_site):
    text = "```text\n[a](../CONTRIBUTING.md)\n```\nand `[b](../CONTRIBUTING.md)`, [`c`](../CONTRIBUTING.md)"
    assert links_of_the_site(text, "cost.md") == text.replace("[`c`](../CONTRIBUTING.md)", "[`c`](contributing.md)")


PUBLIC = {"next_items": "dmpo_trl.data.next_items", "Ranks": "dmpo_trl.evaluation.Ranks"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("As [`next_items`] does.", "As [`next_items`][dmpo_trl.data.next_items] does."),
        ("[`Ranks.from_scores`]", "[`Ranks.from_scores`][dmpo_trl.evaluation.Ranks.from_scores]"),
        ("[`~trl.DPOTrainer`] and [`trl.DPOConfig`]", "`DPOTrainer` and `trl.DPOConfig`"),
        ("[`_text`] [`link`](page.md)", "`_text` [`link`](page.md)"),
        ("    Example:\n        >>> 1", "    Examples:\n        >>> 1"),
        ("    > Parameters that control it\n\n    k (`int`, *optional*):\n        K.", "    k:\n        K."),
        ("Args:\n    k, n: See `rank`.\n    m: M.\n", "Args:\n    k: See `rank`.\n    n: See `rank`.\n    m: M.\n"),
        ("Args:\n    k, n: One\n        two.\n", "Args:\n    k: One\n        two.\n    n: One\n        two.\n"),
        ("Of k, n: the first.\n", "Of k, n: the first.\n"),
    ],
)
def test_a_docstring_is_read_in_the_references_form(docstrings, text, read):
    assert docstrings.rewritten(text, PUBLIC) == read


def test_a_reference_to_nothing_is_found(docstrings):
    text = (
        "[`next_items`], [`nxt_items`], [`Rank.from_scores`], [`~trl.DPOTrainer`], [`~trl.trainer.Name`], [`x`](y.md)"
    )
    assert docstrings.unknown(text, {"next_items"}) == ["nxt_items", "Rank.from_scores"]


def test_every_public_module_has_a_page(docstrings):
    pages = [page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md")]
    assert {re.search(r"^::: (\S+)$", page, re.M)[1] for page in pages} == set(docstrings.PUBLIC)
    modules = {module.__name__ for module in (dmpo_trl, data, evaluation, recommend, losses)}
    assert set(docstrings.PUBLIC) == modules | {"dmpo_trl.serving"}  # which needs an extra to be imported


def test_every_module_that_a_page_imports_from_has_a_page(docstrings):
    """But for the command line, which has its own page."""
    files = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    code = "\n".join(block.text for file in files for block in blocks(file) if block.language in ("python", "diff"))
    imported = set(re.findall(r"^[+ >]*(?:from|import) (dmpo_trl[\w.]*)", code, re.M))
    assert imported - {"dmpo_trl.cli"} <= set(docstrings.PUBLIC)
    assert "dmpo_trl.serving" in imported


def test_the_navigation_has_every_page(pages):
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    inside = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert sorted(shown(config["nav"])) == sorted(inside | set(pages.PAGES.values()))


def shown(nav):
    """The pages of a navigation, or of one of its sections."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in nav for below in entry.values() for page in shown(below)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="b.html">', None),
        ('<a href="#here"><p id="here">', None),
        ('<a href="https://example.org/x">', None),
        ('<link rel="canonical" href="https://example.org/a.html">', None),
        ('<a href="c.html">', "c.html leads to no file"),
        ('<img src="c.svg">', "c.svg leads to no file"),
        ('<a href="b.html#nowhere">', "b.html#nowhere leads to no anchor"),
        ('<a href="#nowhere">', "#nowhere leads to no anchor"),
        ('<script src="https://example.org/x.js">', "https://example.org/x.js is loaded from another host"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "//example.org/x.css is loaded from another host"),
    ],
)
def test_what_is_wrong_with_a_page_is_found(problems, tmp_path, body, problem):
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text('<p id="there">')
    assert problems(tmp_path) == ([f"a.html: {problem}"] if problem else [])


def test_a_font_of_another_host_is_found(problems, tmp_path):
    (tmp_path / "style.css").write_text('p { src: url("https://example.org/font.woff") } a { src: url(data:x) }')
    assert problems(tmp_path) == ["style.css: https://example.org/font.woff is loaded from another host"]
