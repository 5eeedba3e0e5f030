"""The picture of prefix sharing is what the script draws, of the tokens that the layout computes."""

import pytest
from support import ROOT, load_script


@pytest.fixture(scope="module")
def script():
    with load_script("scripts/docs/draw_trie.py") as script:
        yield script


def test_the_picture_is_that_of_the_script(script):
    assert (ROOT / "docs" / "images" / "trie.svg").read_text(encoding="utf-8") == script.draw()


def test_each_box_is_a_distinct_prefix(script):
    row, word = script.rows()
    paths = []
    for token, parent in zip(row.input_ids, script.parents(row), strict=True):
        paths.append([*(paths[parent] if parent is not None else []), word[token]])
    sequences = [
        script.words(f"{prompt} {title}")[:-1]  # the last token is scored only
        for prompt, titles in zip(script.PROMPTS, script.COMPLETIONS, strict=True)
        for title in titles
    ]
    prefixes = {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert sorted(map(tuple, paths)) == sorted(prefixes)
    assert script.copies() == sum(map(len, sequences))
    assert script.draw().count("<rect") == len(prefixes) + len(sequences)
