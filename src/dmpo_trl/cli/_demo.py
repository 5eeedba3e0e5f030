"""A page on which one picks titles, and sees what models recommend after them and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio
import numpy as np

from ..recommend import Explanation, Recommender

_MOST = 20  # recommendations
# Scales with the page's theme, light or dark
_STYLE = """
.effects div { display: grid; grid-template-columns: 40% 5em 1fr; gap: 0 .6em; align-items: center; padding: .15em 0 }
.effects span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-variant-numeric: tabular-nums }
.effects svg { width: 100%; height: 1em } .effects .for { fill: #2e9e5b } .effects .against { fill: #c8553d }
.effects line { stroke: currentColor; opacity: .5 }
.found label { width: 100% }
"""


def demo_page(recommenders: Mapping[str, Recommender], *, num_beams: int = 100) -> gradio.Blocks:
    """Return the page. It loads nothing from other hosts and tells none of its use.

    Args:
        recommenders: One or two, by the names to show. The first one's catalogue is what can be picked.
        num_beams: Of the search.

    Raises:
        ValueError: They have not the same items.

    Example:
        >>> demo_page({"dmpo": recommender, "sft": other}).launch(**launch_options())  # doctest: +SKIP
    """
    first, *others = recommenders.values()
    catalogue = first.catalogue
    if any(set(other.catalogue.items) != set(catalogue.items) for other in others):
        raise ValueError("The two models have different catalogues: there is nothing that both could recommend.")
    labels = list(zip(_labels(catalogue.titles, catalogue.items), catalogue.items, strict=True))
    with gradio.Blocks(title="dmpo-trl: recommendations", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# What next?\nPick what somebody had, from old to new: type to find one of {len(labels):,} titles."
        )
        history = gradio.Dropdown(labels, value=[], multiselect=True, label="History", elem_id="history")
        number = gradio.Slider(1, _MOST, value=5, step=1, label="Recommendations", elem_id="number")
        ask = gradio.Button("Recommend", variant="primary", elem_id="ask")
        with gradio.Row():
            for place, (name, recommender) in enumerate(recommenders.items()):
                with gradio.Column():
                    found = gradio.Radio([], label=name, elem_id=f"found{place}", elem_classes="found")
                    why = gradio.HTML(elem_id=f"why{place}")
                    _connect(recommender, num_beams, history, number, ask, found, why)
        gradio.Markdown(
            "A score is the log-prob of the title. Choose a recommendation to see what each title of the history adds "
            "to its score; that says how the score reacts when one is taken out, one at a time, and not what the "
            "person had in mind."
        )
    return page


def launch_options() -> dict[str, Any]:
    """Return how the page is launched: with the system's fonts, no link to share it, nothing sent anywhere."""
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    off = dict.fromkeys(("share", "pwa", "ssr_mode", "mcp_server", "enable_monitoring", "run_history"), False)
    return off | {"theme": theme, "css": _STYLE, "footer_links": [], "quiet": True}


def effect_bars(explanation: Explanation) -> str:
    """Return an explanation as HTML: a bar for each item of the history, to the right where it speaks for it.

    Args:
        explanation: The explanation. Its titles are text, whatever they look like.

    Example:
        >>> bars = effect_bars(Explanation("7", "<b>", -3.5, ("1",), ("Alien",), np.array([0.25]), words=""))
        >>> "&lt;b&gt;" in bars, "+0.250" in bars
        (True, True)
    """
    largest = float(np.abs(explanation.effects).max()) or 1.0
    lines = []
    for place in np.argsort(-explanation.effects, kind="stable"):
        title, effect = escape(explanation.titles[place]), float(explanation.effects[place])
        width = 50 * abs(effect) / largest
        kind, left = ("against", 50 - width) if effect < 0 else ("for", 50.0)
        lines.append(
            f'<div><span title="{title}">{title}</span><span>{effect:+.3f}</span><svg viewBox="0 0 100 10" '
            f'preserveAspectRatio="none"><rect class="{kind}" x="{left:.2f}" y="2" width="{width:.2f}" height="6"/>'
            '<line x1="50" x2="50" y1="0" y2="10" vector-effect="non-scaling-stroke"/></svg></div>'
        )
    return f'<div class="effects"><b>{escape(explanation.title)}</b>: nats of each title{"".join(lines)}</div>'


def _connect(
    recommender: Recommender,
    num_beams: int,
    history: gradio.Dropdown,
    number: gradio.Slider,
    ask: gradio.Button,
    found: gradio.Radio,
    why: gradio.HTML,
) -> None:
    """Let one model answer."""
    no_choice = gradio.Radio(choices=[], value=None)

    def recommend(had: Sequence[str], k: int) -> tuple[Any, str]:
        if not had:
            return no_choice, "Pick at least one title."
        try:
            best = recommender.recommend(had, int(k), num_beams=num_beams)
        except ValueError as error:
            return no_choice, escape(str(error))
        shown = [(f"{place}. {one.title} ({one.score:.2f})", one.item) for place, one in enumerate(best, 1)]
        return gradio.Radio(choices=shown, value=None), ""

    def explain(had: Sequence[str], item: str | None) -> str:
        if not had or item is None:
            return ""
        try:
            return effect_bars(recommender.explain(had, item))
        except ValueError as error:
            return escape(str(error))

    # One request at a time reaches the models
    queue: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    asked = ask.click(recommend, [history, number], [found, why], **queue)
    explained = found.input(explain, [history, found], why, **queue)
    # What was recommended belongs to the history that it was asked for. It is emptied in the browser: an answer of the
    # server's could come after that to the next question, and empty its list
    empty = "() => [{__type__: 'update', choices: [], value: null}, '']"
    history.change(None, None, [found, why], js=empty, cancels=[asked, explained], api_visibility="private")


def _labels(titles: Sequence[str], items: Sequence[str]) -> list[str]:
    """Return the titles, with the item where several share one."""
    seen = Counter(titles)
    return [title if seen[title] == 1 else f"{title} [{item}]" for title, item in zip(titles, items, strict=True)]
