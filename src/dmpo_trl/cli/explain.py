"""`dmpo-trl explain`: influence of each item of a history on a recommendation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..writing import check_file, new_file
from .options import ModelArguments, Parser, check_at_least

if TYPE_CHECKING:
    from ..recommend import Recommender


@dataclass
class ExplainArguments:
    """What to explain."""

    history: list[str] = field(metadata={"help": "The user's items from old to new, by identifier or exact title."})
    item: str | None = field(
        default=None, metadata={"help": "The item to explain. Default: the one that would be recommended."}
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote: catalogue and template. Default: those that "
            "`Recommender.save_pretrained` or `dmpo-trl train` left beside the model."
        },
    )
    picture: str | None = field(default=None, metadata={"help": "Also draw it to this file (.png, .svg, .pdf)."})
    overwrite: bool = field(default=False, metadata={"help": "Replace --picture where it exists."})
    max_new_tokens: int = field(
        default=0,
        metadata={
            "help": "Also let the model explain itself in so many tokens at most, for instance 60. What it says is "
            "generated, and no evidence of the cause."
        },
    )

    def __post_init__(self) -> None:
        """Check the number."""
        check_at_least(self, max_new_tokens=0)


def make_parser() -> Parser:
    """Return the command's parser."""
    example = 'dmpo-trl explain --model outputs/dmpo --data data --history "Toy Story (1995)" 50 --picture why.png'
    return Parser("explain", ModelArguments, ExplainArguments, example=example)


def run(arguments: list[str]) -> None:
    """Explain as the arguments say: print the explanation, and draw it where asked to."""
    from ..recommend.explanation import import_figure
    from ._loading import load_recommender

    model, options = make_parser().parse(arguments)
    if options.picture is not None:
        import_figure()  # before the work, not after it
        check_file(options.picture, overwrite=options.overwrite)
    recommender = load_recommender(model.model, model.from_pretrained(), data=options.data)
    item = options.item or _best_item(recommender, options.history)
    explanation = recommender.explain(options.history, item, max_new_tokens=options.max_new_tokens)
    print(explanation)
    if options.picture is not None:
        with new_file(options.picture, overwrite=options.overwrite) as file:
            explanation.plot(file)
        print(f"Drawn to {options.picture}.")


def _best_item(recommender: Recommender, history: list[str]) -> str:
    """Return the item that would be recommended."""
    found = recommender.recommend(history, 1)
    if not found:
        raise ValueError(
            "--history holds the whole catalogue, so nothing is left to recommend: name the item to explain with "
            "--item."
        )
    return found[0].item
