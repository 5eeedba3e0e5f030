"""`dmpo-trl demo`: a page on which one picks titles and sees recommendations and what they rest on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from .options import ModelArguments, Parser, check_at_least, check_port


@dataclass
class DemoArguments:
    """What is shown, and where."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote: catalogue and template. Default: those that "
            "`dmpo-trl export`, `Recommender.save_pretrained` or `dmpo-trl train` left beside the model."
        },
    )
    baseline: str | None = field(
        default=None, metadata={"help": "Another model, for instance the SFT stage, to show beside it."}
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen at. Another than this machine's own has no password before it."},
    )
    port: int = field(default=7860, metadata={"help": "Port to listen at."})
    num_beams: int = field(default=100, metadata={"help": "Number of title prefixes that a search follows at a time."})

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, port=1, num_beams=1)
        check_port(self.port)


def make_parser() -> Parser:
    """Return the command's parser."""
    example = "dmpo-trl demo --model outputs/dmpo --baseline outputs/sft --data data"
    return Parser("demo", ModelArguments, DemoArguments, example=example)


def run(arguments: list[str]) -> None:
    """Show the page until the process is told to stop."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # which gradio reads when it is imported
    model, options = make_parser().parse(arguments)
    try:
        from ._demo import demo_page, launch_options
    except ImportError as error:
        raise ImportError("The page needs gradio: pip install '.[demo]' in a clone of dmpo-trl.") from error
    from ..modeling.loading import check_found
    from ._loading import load_recommender
    from .serve import listen, url

    listen(options.host, options.port).close()  # before the models are loaded
    paths, loading = {"": model.model}, replace(model, revision=None).from_pretrained()
    if options.baseline is not None:
        check_found(options.baseline, **loading)
        paths["baseline"] = options.baseline
    names = [Path(path).name or path for path in paths.values()]
    if len(set(names)) < len(names):
        names = [f"{kind} {path}".strip() for kind, path in paths.items()]
    of_each = [model.from_pretrained(), loading]
    page = demo_page(
        {
            name: load_recommender(path, own, data=options.data)
            for name, path, own in zip(names, paths.values(), of_each, strict=False)
        },
        num_beams=options.num_beams,
    )
    page.launch(server_name=options.host, server_port=options.port, prevent_thread_lock=True, **launch_options())
    print(f"The page is at {url(options.host, options.port)}. Ctrl-C ends it.", flush=True)
    page.block_thread()
