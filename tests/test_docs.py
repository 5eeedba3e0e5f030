"""README and docs: links, anchors, paths, commands and the example of a loss."""

import math
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from support import make_model, make_tokenizer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Return the relative links of a page whose file or anchor does not exist."""
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def code(text: str) -> str:
    """Return the code of a page: blocks, indented lines and what stands in backticks."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"^    (.+)$", rest, re.MULTILINE), *re.findall(r"`([^`]+)`", rest)])


def named(page: Path, folder: Path = ROOT) -> str:
    return str(page.relative_to(folder))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_anchors_exist(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "link", ["docs/no-such-page.md", "docs/cost.md#no-such-heading", "#no-such-heading", "docs/images/no.svg"]
)
def test_a_broken_link_is_found(link):
    text = f"[here]({link}), [there](docs/cost.md#the-formulas), ![picture](docs/images/step.svg), [TRL](https://x.y)"
    assert broken_links(ROOT / "README.md", text) == [link]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page):
    """Paths below the repository's folders, in code or in backticks."""
    text = code(page.read_text(encoding="utf-8"))
    paths = re.findall(r"(?<![\w/.-])((?:src|tests|docs|examples|benchmarks|scripts)/[\w./-]+\.\w+)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_make_targets_exist(page):
    text = code(page.read_text(encoding="utf-8"))
    commands = set(re.findall(r"^dmpo-trl (?:--verbose )?([a-z]+)\b", text, re.MULTILINE))
    assert commands <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_options_of_the_benchmarks_exist(page):
    """Each option of a command that runs a script of benchmarks/ is a field of its settings."""
    text = code(page.read_text(encoding="utf-8"))
    for script, rest in re.findall(r"python benchmarks/(\w+)\.py(.*)$", text, re.MULTILINE):
        source = "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in (script, "models"))
        for word in shlex.split(rest.partition("#")[0]):
            if word.startswith("--"):
                assert re.search(rf"^    {word[2:]}: ", source, re.MULTILINE), f"{script}.py has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tests_that_are_named_exist(page):
    """`test_name` is one test; `test_name...` is the beginning of at least one."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    names = re.findall(r"(?<![\w-])(test_\w+)\b(\.\.\.)?(?!\.py|:\s)", code(page.read_text(encoding="utf-8")))
    files = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        name
        for name, more in names
        if name not in files and not re.search(rf"^def {name}{'' if more else chr(92) + '('}", source, re.MULTILINE)
    ]
    assert missing == []


def test_the_index_has_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert {named(page, ROOT / "docs") for page in ROOT.glob("docs/**/*.md")} - {"index.md"} <= set(LINK.findall(text))


def test_the_loss_of_ones_own_trains(tmp_path, monkeypatch):
    """The example of docs/losses.md as it stands, on a tiny model; its loss is what the page says."""
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (example,) = re.findall(r"^```python\n(import.*?)^```", (ROOT / "docs" / "losses.md").read_text(), re.M | re.S)
    example = example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model"))
    example = example.replace(
        "max_steps=1", "max_steps=1, use_cpu=True, bf16=False, report_to='none', save_strategy='no'"
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["trainer"].state.log_history[-1]["train_loss"] == pytest.approx(1.78, abs=0.005)


def test_the_rows_with_several_chosen_completions_train(tmp_path, monkeypatch):
    """The example of docs/losses.md as it stands; before the first step a candidate is as good as any other."""
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (example,) = re.findall(r"^```python\n(rows = .*?)^```", (ROOT / "docs" / "losses.md").read_text(), re.M | re.S)
    names: dict = {"Dataset": Dataset, "DMPOConfig": partial(DMPOConfig, use_cpu=True, bf16=False, report_to="none")}
    monkeypatch.chdir(tmp_path)
    exec(example, names)
    trainer = DMPOTrainer(str(tmp_path / "model"), args=names["args"], train_dataset=names["rows"])
    loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(list(trainer.train_dataset)))
    # Aliens among three candidates, Predator, which Aliens is above, among two; Heidi among three
    assert loss.item() == pytest.approx((math.log(3) + math.log(2) + math.log(3)) / 2, abs=1e-4)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_change_from_dpo_to_dmpo_trains(page, tmp_path, monkeypatch):
    """The lines after the change as they stand, with another model: on a CPU too, where TRL's bf16 cannot be had."""
    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    lines = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("from datasets import Dataset\n" + "\n".join(lines).replace("Qwen/Qwen3-0.6B", "model"), names)
    assert names["trainer"].state.global_step == 3  # one row, three epochs


def test_the_start_page_has_the_table_of_the_readme():
    """Its figures, and the command that measures them."""
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/index.md")]
    tables = [re.findall(r"^\| N \|.*\n(?:\|.*\n)+\nSmolLM2-135M, .*$", page, re.M) for page in pages]
    assert len(tables[0]) == 1
    assert tables[0] == tables[1]


def test_nothing_says_to_install_by_name_what_is_not_on_pypi():
    """From a clone it is `pip install .`, with extras `pip install '.[plot]'`."""
    files = [
        *PAGES,
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
        *ROOT.glob("examples/**/*.ipynb"),
    ]
    by_name = re.compile(r"pip install (?:-\S+ )*[\\'\"]*dmpo-trl(?! @)")
    assert [str(file) for file in files if by_name.search(file.read_text(encoding="utf-8"))] == []
