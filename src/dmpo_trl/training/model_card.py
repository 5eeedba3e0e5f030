"""The model card: TRL's, with a recommender's quick start in the place of a chat, and what the training was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from trl.trainer.utils import get_config_model_id

from ..preprocessing.truncate import token_lengths

if TYPE_CHECKING:
    from ..trainer import DMPOTrainer

_RANK = """
for one in recommender.rank(history={history!r}, candidates={candidates!r}):
    print(f"{{one.score:8.2f}}  {{one.title}}")"""

_SAVED = """\
from dmpo_trl.recommend import Recommender

recommender = Recommender.from_pretrained({model!r})"""

_OF_A_CATALOGUE = """\
import polars as pl

from dmpo_trl.data import PromptTemplate
from dmpo_trl.recommend import Recommender

# Your catalogue, and the words around the titles in the training prompts. From a folder that `dmpo-trl prepare` wrote:
# Recommender.from_pretrained({model!r}, data="the-folder")
items = pl.DataFrame({{"item": ["1", "2", "3"], "title": ["Alien (1979)", "Aliens (1986)", "Babe (1995)"]}})
template = PromptTemplate(
    instruction="A viewer liked these films, oldest first:",
    question="Which film will the viewer like next?",
    conversational={conversational},
)
recommender = Recommender.from_pretrained({model!r}, items=items, template=template)"""


def hub_dataset(dataset: Any) -> str | None:
    """The hub id of a dataset that `load_dataset` downloaded, None for any other."""
    for file in getattr(dataset, "cache_files", []):
        # Where `datasets` keeps what it downloaded: <cache>/<namespace>___<name>/<config>/...
        if found := [part for part in Path(file["filename"]).parts if "___" in part]:
            return found[0].replace("___", "/")
    return None


def complete_card(trainer: DMPOTrainer) -> None:
    """Rewrites the card that TRL left in the trainer's `output_dir`.

    The quick start is a recommender's. Below it stand the training data with their number of negatives and, where a
    `RankingCallback` ranked held-out users, the metrics at the best step and at the last one.
    """
    path = Path(str(trainer.args.output_dir)) / "README.md"
    text = path.read_text(encoding="utf-8")
    base_model = get_config_model_id(trainer.model.config)
    if base_model:  # a folder, for which TRL writes a link to None
        text = text.replace("[None](https://huggingface.co/None)", f"`{Path(base_model).name}`")
    sections = f"{_quick_start(trainer)}\n\n{_training_data(trainer)}\n\n{_ranking(trainer)}"
    of_trl = re.compile(r"^## Quick start$.*?(?=^## )", re.MULTILINE | re.DOTALL)
    text, found = of_trl.subn(lambda _: sections, text, count=1)
    path.write_text(text if found else f"{text}\n{sections}", encoding="utf-8")


def _quick_start(trainer: DMPOTrainer) -> str:
    folder = Path(str(trainer.args.output_dir))
    model = trainer.hub_model_id or str(folder)
    history, candidates = ["Alien (1979)"], ["Aliens (1986)", "Babe (1995)"]
    if (folder / "recommender.json").exists():
        import polars as pl

        start = _SAVED.format(model=model)
        first, *others = pl.read_parquet(folder / "items.parquet", columns=["title"], n_rows=4)["title"].to_list()
        history, candidates = [first], others or [first]
    else:
        start = _OF_A_CATALOGUE.format(model=model, conversational=_is_conversational(trainer))
    code = f"{start}\n{_RANK.format(history=history, candidates=candidates)}"
    return f"## Quick start\n\n```bash\npip install dmpo-trl\n```\n\n```python\n{code}\n```"


def _is_conversational(trainer: DMPOTrainer) -> bool:
    first: Any = next(iter(trainer.train_dataset), {})  # type: ignore[arg-type]
    return isinstance(first.get("prompt", first.get("chosen")), list)


def _training_data(trainer: DMPOTrainer) -> str:
    dataset: Any = trainer.train_dataset
    name = hub_dataset(dataset)
    if name is not None:
        name = f"[{name}](https://huggingface.co/datasets/{name})"
    elif getattr(dataset, "info", None) is not None and dataset.info.dataset_name:
        name = f"`{dataset.info.dataset_name}`"
    size = f"{len(dataset):,} examples" if isinstance(dataset, Dataset) else "a stream"
    lines = [f"- Dataset: {name or 'in memory'}, {size}."]
    if isinstance(dataset, Dataset) and "rejected_ids" in dataset.column_names:
        counts = np.bincount(token_lengths(dataset)[3])
        lines.append(f"- Negatives an example (N): {counts.min()} to {counts.max()}, {counts.mean():.2f} on average.")
    elif logged := [entry["num_rejected"] for entry in trainer.state.log_history if "num_rejected" in entry]:
        lines.append(f"- Negatives an example (N): {np.mean(logged):.2f} on average.")
    lines.append(f"- Loss: {' + '.join(f'`{name}`' for name in trainer.loss_types)}, beta = {trainer.beta}.")
    return "## Training data\n\n" + "\n".join(lines)


def _ranking(trainer: DMPOTrainer) -> str:
    """The section of the ranking, empty where nothing was ranked."""
    from ..evaluation import RankingCallback, markdown_table

    callback = next((own for own in trainer.callback_handler.callbacks if isinstance(own, RankingCallback)), None)
    if callback is None:
        return ""
    names = {f"eval_{name}": name for name in callback.metrics}
    steps = {
        entry["step"]: {name: entry[key] for key, name in names.items()}
        for entry in trainer.state.log_history
        if names.keys() <= entry.keys()
    }
    if not steps:
        return ""
    last, best = max(steps), trainer.state.best_global_step
    rows, note = {f"last, step {last:,}": steps[last]}, ""
    if best in steps and best != last:
        rows = {f"best, step {best:,}": steps[best]} | rows
        note = f" The best step is that of `{trainer.args.metric_for_best_model}`."
    sizes = sorted({len(candidates) for candidates in callback.dataset["candidates"]})
    shown = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    kind = "sum" if callback.score == "sum" else "mean a token"
    return (
        f"## Ranking\n\n{len(callback.dataset):,} users were ranked during training, {shown} candidates each, by "
        f"log-prob ({kind}).{note}\n\n{markdown_table(rows)}\n\n"
    )
