"""Tables of the cells of `learning.py`: what each method ranks, and what it adds to SFT at equal tokens.

    python benchmarks/learning_report.py

Metrics are means over the users and, in brackets, the standard deviation over the seeds. Differences from "sft more"
are paired by user (each user's mean over the seeds), with a permutation test; the p-values of one table are corrected
for how many there are (Holm).
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
from machine import ROOT
from transformers import HfArgumentParser

from dmpo_trl.evaluation import paired_difference

CONTROL = "sft more"


@dataclass
class Settings:
    cells: Path = ROOT / "benchmarks" / "results" / "learning"


def read(folder: Path) -> dict[tuple[str, int], dict[str, dict[int, dict[str, Any]]]]:
    """Return the cells by dataset and number of training users, then by ranker, then by seed."""
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(dict))
    for file in sorted(folder.glob("*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        rankers = found[cell["settings"]["dataset"], cell["settings"]["users"]]
        for name, own in cell.items():
            if not (isinstance(own, dict) and "ranks" in own):
                continue
            kind = name.removeprefix("test ")
            ranker = name if cell["method"] == "counts" else cell["method"]
            ranker = {"sum": ranker, "mean": f"{ranker}, mean per token", "fused": f"{ranker} + item knn"}.get(
                kind, name
            )
            rankers[ranker][cell["seed"]] = own | {"training": cell.get("training") or {}}
    return found


def table(rankers: dict[str, dict[int, dict[str, Any]]]) -> list[report.Row]:
    control = rankers.get(CONTROL, {})
    rows, p_values = [], []
    for name, seeds in rankers.items():
        row: report.Row = {"ranker": name, "seeds": len(seeds)}
        for metric in ("hr@1", "ndcg@5", "auc"):
            values = [own[metric] for own in seeds.values()]
            row[metric] = f"{np.mean(values):.3f}" + (f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else "")
        row["gap to the hardest"] = f"{np.mean([own['mean gap to the hardest'] for own in seeds.values()]):.2f}"
        row["tokens"] = next((f"{own['training']['tokens']:,}" for own in seeds.values() if own["training"]), "")
        row["ndcg@5 - sft more"], row["p"] = "", ""
        shared = sorted(seeds.keys() & control.keys())
        if shared and name != CONTROL:
            ours, theirs = (
                np.mean([of[seed]["ndcg@5 per user"] for seed in shared], axis=0) for of in (seeds, control)
            )
            difference = paired_difference(ours, theirs)
            row["ndcg@5 - sft more"] = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
            p_values.append((difference.p_value, row))
        rows.append(row)
    corrected = 0.0
    for place, (p, row) in enumerate(sorted(p_values, key=lambda pair: pair[0])):
        corrected = max(corrected, min(1.0, p * (len(p_values) - place)))
        row["p"] = f"{corrected:.2g}"
    return rows


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    for (dataset, users), rankers in read(settings.cells).items():
        rows = table(rankers)
        print(f"{dataset}, {users} training users\n\n{report.table_head(list(rows[0]))}")
        for row in rows:
            print(report.table_row(row, list(row)))
        print()


if __name__ == "__main__":
    main()
