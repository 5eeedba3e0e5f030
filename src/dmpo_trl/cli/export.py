"""`dmpo-trl export`: adapter and base model merged, with tokenizer, template, catalogue and titles, in one folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .options import ModelArguments, Parser


@dataclass
class ExportArguments:
    """Where the model goes, and where its catalogue comes from."""

    output_dir: str = field(metadata={"help": "Folder to write. It appears when it is complete."})
    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote: catalogue and template. Default: those that "
            "`Recommender.save_pretrained` or `dmpo-trl train` left beside the model."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier export in --output_dir."})


def make_parser() -> Parser:
    """Return the command's parser."""
    example = "dmpo-trl export --model outputs/dmpo --output_dir exported --dtype bfloat16"
    return Parser("export", ModelArguments, ExportArguments, example=example)


def run(arguments: list[str]) -> None:
    """Export as the arguments say."""
    from ..recommend import Recommender
    from ..recommend.exporting import check_export, export

    model, options = make_parser().parse(arguments)
    check_export(model.model, options.output_dir, overwrite=options.overwrite, **model.from_pretrained())
    recommender = Recommender.from_pretrained(model.model, data=options.data, **model.from_pretrained())
    dtype, titles = str(recommender.model.dtype).removeprefix("torch."), len(recommender.catalogue.titles)
    moved = export(recommender, options.output_dir, overwrite=options.overwrite)
    size = sum(file.stat().st_size for file in Path(options.output_dir).glob("*.safetensors"))
    print(f"The model ({dtype}, {size / 1e6:,.1f} MB) and its {titles:,} titles are in {options.output_dir}.")
    if moved:
        print(f"Merging the adapter moved the score of a title by {moved:.1g} nats at most.")
