"""Check of the scoring head, and how far from its edge it is: shares of what it tolerates.

    python benchmarks/head_check.py --output benchmarks/results

A share above 1 means that the head is found out, and the model scored through its own logits. Factors multiply the
model's logits. By default the model is SmolLM2-135M, whose logits are far from zero, where bf16 is coarse.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
import torch
from machine import describe
from models import default_model
from transformers import AutoModelForCausalLM, HfArgumentParser

from dmpo_trl.modeling.head_check import head_difference
from dmpo_trl.modeling.scoring_head import add_scoring_head

COLUMNS = ["dtype", "factor", "share of what is tolerated"]


@dataclass
class Settings:
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    factors: list[float] = field(default_factory=lambda: [1.0, 1.01, 1.02, 1.3])
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    name: str = field(default="head-check", metadata={"help": "Beginning of the file names in --output."})


def multiply_logits(model: Any, factor: float) -> None:
    """Make `model` one that multiplies its logits, as a class that the package has not met."""
    own = type(model)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own.forward(self, *args, **kwargs)
        output.logits = factor * output.logits
        return output

    model.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    folder = settings.model or default_model()
    header = describe() | {"model": Path(folder).name}
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    rows = []
    for dtype in settings.dtypes:
        for factor in settings.factors:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
            if factor != 1:
                multiply_logits(model, factor)
            add_scoring_head(model)
            difference, tolerated = head_difference(model, model)
            rows.append({"dtype": dtype, "factor": factor, "share of what is tolerated": difference / tolerated})
            print(report.table_row(rows[-1], COLUMNS), flush=True)
    if settings.output is not None:
        report.add_rows(settings.output, settings.name, report.command("head_check", arguments), header, rows)


if __name__ == "__main__":
    main()
