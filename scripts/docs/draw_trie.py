"""Picture of docs/prefix-sharing.md: the rows of a small batch as the collator lays them out.

    python scripts/docs/draw_trie.py docs/images/trie.svg

Each box is a token that is computed, with its parent to the left; tokens are words here. A dashed box is a token that
is scored only: the last one of a completion, which predicts nothing.
"""

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from dmpo_trl.batching.trie import Row, build_row

# Two examples of one user, the second a film later, with one chosen (first) and two rejected titles each
PROMPTS = ["Watched: Alien Babe Next:", "Watched: Alien Babe Heidi Next:"]
COMPLETIONS = [["Star Wars .", "Star Trek .", "Toy Story ."], ["Star Trek .", "Toy Story .", "Toy Soldiers ."]]
WIDE, HIGH, LINE = 78, 24, 34  # a column, a box, the distance of two lines
# Middle tones, which can be read on white and on black
PROMPT, COMPLETION, SCORED = "#3b82d6", "#2f9e6e", "#808890"


def words(text: str) -> list[str]:
    """The tokens of a text."""
    return text.split()


def rows() -> tuple[Row, dict[int, str]]:
    """The batch's row, and the word of each token id."""
    sequences = [words(text) for text in [*PROMPTS, *(title for own in COMPLETIONS for title in own)]]
    number = {word: place for place, word in enumerate(dict.fromkeys(word for own in sequences for word in own))}

    def ids(text: str) -> list[int]:
        return [number[word] for word in words(text)]

    row = build_row(list(map(ids, PROMPTS)), [list(map(ids, own)) for own in COMPLETIONS])
    return row, {place: word for word, place in number.items()}


def copies() -> int:
    """Tokens that are computed where each completion has a copy of its prompt."""
    return sum(
        len(words(prompt)) + len(words(title)) - 1
        for prompt, own in zip(PROMPTS, COMPLETIONS, strict=True)
        for title in own
    )


def parents(row: Row) -> list[int | None]:
    """The node that each node follows: the last one before it that it sees."""
    return [
        max((seen for seen in range(node) if row.subtree_end[seen] > node), default=None)
        for node in range(len(row.input_ids))
    ]


def draw() -> str:
    """The picture."""
    row, word = rows()
    above = parents(row)
    line = -1
    places: list[tuple[int, int]] = []  # column and line of each node
    leaves: list[tuple[int, int, int]] = []  # of each token that is scored only
    last = words(PROMPTS[0])[-1]  # of each prompt
    of_prompt: list[bool] = []
    scored = dict[int, list[int]]()
    for node, target in zip(row.scored_nodes, row.scored_targets, strict=True):
        scored.setdefault(node, []).append(target)
    for node, parent in enumerate(above):
        first = parent is not None and parent == node - 1
        line += 0 if first else 1
        places.append((row.position_ids[node], line))
        for target in scored.get(node, []):
            if row.subtree_end[node] == node + 1:
                leaves.append((row.position_ids[node] + 1, line, target))
    width, height = (max(column for column, _, _ in leaves) + 1) * WIDE + 8, (line + 1) * LINE + 46
    parts = []
    for node, (column, own) in enumerate(places):
        parent = above[node]
        if parent is not None:
            parts.append(_edge(*places[parent], column, own))
        text = word[row.input_ids[node]]
        of_prompt.append(parent is None or (of_prompt[parent] and word[row.input_ids[parent]] != last))
        parts.append(_box(column, own, text, PROMPT if of_prompt[node] else COMPLETION))
    for column, own, target in leaves:
        parts += [_edge(column - 1, own, column, own), _box(column, own, word[target], SCORED, dashed=True)]
    said = f"{len(row.input_ids)} tokens are computed; with a copy of the prompt per completion {copies()}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13">\n<title>{escape(said)}</title>\n'
        + "\n".join(parts)
        + f'\n<text x="4" y="{height - 12}" fill="{SCORED}">{escape(said)}.</text>\n</svg>\n'
    )


def _middle(line: int) -> float:
    return line * LINE + 4 + HIGH / 2


def _box(column: int, line: int, text: str, color: str, *, dashed: bool = False) -> str:
    x, dash = column * WIDE + 4, ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x}" y="{line * LINE + 4}" width="{WIDE - 14}" height="{HIGH}" rx="5" fill="none" stroke="{color}" '
        f'stroke-width="1.5"{dash}/><text x="{x + (WIDE - 14) / 2:g}" y="{_middle(line) + 4.5:g}" fill="{color}" '
        f'text-anchor="middle">{escape(text)}</text>'
    )


def _edge(column: int, line: int, to_column: int, to_line: int) -> str:
    x, end = (column + 1) * WIDE - 10, to_column * WIDE + 4
    bend = f"H{(x + end) / 2:g} V{_middle(to_line):g} " if line != to_line else ""
    return f'<path d="M{x} {_middle(line):g} {bend}H{end}" fill="none" stroke="{SCORED}"/>'


def main(arguments: Sequence[str]) -> None:
    """Write the picture to the file that is named."""
    Path(arguments[0]).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
