"""Tables of figures, and differences in words."""

import pytest

from dmpo_trl.evaluation import Difference, Interval, figures_frame, markdown_table, text_table, verdict

ROWS = {
    "model": {"hr@1": Interval(0.5, 0.4, 0.6), "auc": Interval(0.75, 0.7, 0.8)},
    "model - random": {"hr@1": Difference(0.25, 0.125, 0.375, 0.0002), "auc": Difference(-0.1, -0.2, 0.0, 0.051)},
    "other": {"auc": Interval(1, 1, 1), "mrr": 0.5},
}


def test_a_markdown_table():
    assert markdown_table(ROWS).split("\n") == [
        "|  | hr@1 | auc | mrr |",
        "| --- | --- | --- | --- |",
        "| model | 0.500 [0.400, 0.600] | 0.750 [0.700, 0.800] |  |",
        "| model - random | +0.250 [+0.125, +0.375], p = 0.0002 | -0.100 [-0.200, +0.000], p = 0.051 |  |",
        "| other |  | 1.000 [1.000, 1.000] | 0.500 |",
    ]


def test_a_table_for_a_terminal_is_aligned_with_two_blanks_between_the_columns():
    assert text_table(ROWS, width=200).split("\n") == [
        "                hr@1                                 auc                                 mrr",
        "model           0.500 [0.400, 0.600]                 0.750 [0.700, 0.800]",
        "model - random  +0.250 [+0.125, +0.375], p = 0.0002  -0.100 [-0.200, +0.000], p = 0.051",
        "other                                                1.000 [1.000, 1.000]                0.500",
    ]


@pytest.mark.parametrize(("width", "tables"), [(94, 1), (93, 2), (57, 2), (56, 3), (10, 3)])
def test_what_is_too_wide_stands_below(width, tables):
    """The names have 14 characters, the columns 35, 34 and 5: 94 together, 57 without the first."""
    text = text_table(ROWS, width=width)
    assert len(text.split("\n\n")) == tables
    assert max(map(len, text.splitlines())) <= max(width, 51)
    assert [text.count(word) for word in ("hr@1", "auc", "mrr", "other")] == [1, 1, 1, tables]


def test_figures_for_programs():
    assert figures_frame(ROWS).to_dicts()[2:] == [
        {"name": "model - random", "metric": "hr@1", "mean": 0.25, "low": 0.125, "high": 0.375, "p_value": 0.0002},
        {"name": "model - random", "metric": "auc", "mean": -0.1, "low": -0.2, "high": 0.0, "p_value": 0.051},
        {"name": "other", "metric": "auc", "mean": 1.0, "low": 1.0, "high": 1.0, "p_value": None},
        {"name": "other", "metric": "mrr", "mean": 0.5, "low": None, "high": None, "p_value": None},
    ]


@pytest.mark.parametrize(
    ("mean", "p_value", "words"),
    [
        (0.1, 0.049, "dmpo is better than sft"),
        (-0.1, 0.049, "dmpo is worse than sft"),
        (0.1, 0.05, "dmpo and sft cannot be told apart"),
        (0.0, 1.0, "dmpo and sft cannot be told apart"),
    ],
)
def test_a_difference_in_words(mean, p_value, words):
    sentence = verdict("dmpo", "sft", "ndcg@5", Difference(mean, mean - 0.1, mean + 0.1, p_value))
    assert sentence.startswith(f"{words}: ndcg@5 {mean:+.3f} [")
    assert sentence.endswith(f"p = {p_value}.".replace("1.0.", "1."))
