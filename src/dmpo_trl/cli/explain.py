"""`dmpo-trl explain`: influence of each item of a history on a recommendation."""

from __future__ import annotations

from dataclasses import dataclass, field

from .options import ModelArguments, Parser


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
    max_new_tokens: int = field(
        default=60, metadata={"help": "Most tokens of the explanation in the model's own words; 0 for none."}
    )


def make_parser() -> Parser:
    """Return the command's parser."""
    example = 'dmpo-trl explain --model outputs/dmpo --data data --history "Toy Story (1995)" 50 --picture why.png'
    return Parser("explain", ModelArguments, ExplainArguments, example=example)


def run(arguments: list[str]) -> None:
    """Explain as the arguments say: print the explanation, and draw it where asked to."""
    from ..recommend import Recommender

    model, options = make_parser().parse(arguments)
    recommender = Recommender.from_pretrained(model.model, data=options.data, **model.from_pretrained())
    item = options.item or recommender.recommend(options.history, 1)[0].item
    explanation = recommender.explain(options.history, item, max_new_tokens=options.max_new_tokens)
    print(explanation)
    if options.picture is not None:
        explanation.plot(options.picture)
        print(f"Drawn to {options.picture}.")
