"""Model card: TRL's, with a recommender's quick start instead of a chat's, and a summary of the training."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import ModelCard
from trl.trainer.utils import get_config_model_id

from ..preprocessing.truncate import max_num_chosen, token_lengths

PAPER = {
    "title": "Finetuning Large Language Model for Personalized Ranking",
    "id": "2405.16127",
    "citation": textwrap.dedent("""\
        @article{bai2024dmpo,
            title   = {{Finetuning Large Language Model for Personalized Ranking}},
            author  = {Zhuoxi Bai and Ning Wu and Fengyu Cai and Xinyi Zhu and Yun Xiong},
            year    = 2024,
            journal = {arXiv preprint arXiv:2405.16127},
        }"""),
}
"""What the card cites."""
logger = logging.getLogger(__name__)

# In cards that training wrote: the tag of TRL and transformers, and TRL's sentence, since peft takes the tag out when
# it saves beside the card of an earlier run. Peft's own, an empty template, stands there until TRL's is written
_OF_TRAINING = ("generated_from_trainer", "It has been trained using [TRL]")
_OF_PEFT = ("# Model Card for Model ID", "<!-- Provide a quick summary", "### Framework versions\n\n- PEFT")

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
    instruction="Which film will a viewer like next, after these?",
    question="",
    conversational={conversational},
)
recommender = Recommender.from_pretrained({model!r}, items=items, template=template)"""


@dataclass(frozen=True)
class TrainingSummary:
    """What the card tells of a training run.

    Attributes:
        output_dir: Folder of the model and of its card.
        hub_model_id: Where the model will be pushed; None for nowhere.
        base_model: Hub id or folder of the model that training began with; empty where it is not known.
        dataset: The training dataset.
        loss_types: Names of the losses that are added up.
        beta: That of the losses.
        log_history: What was logged, entry by entry.
        sections: Markdown sections of the callbacks that have one (`card_section`).
    """

    output_dir: Path
    hub_model_id: str | None
    base_model: str
    dataset: Any
    loss_types: Sequence[str]
    beta: float
    log_history: Sequence[Mapping[str, Any]]
    sections: Sequence[str]

    @classmethod
    def of(cls, trainer: Any) -> TrainingSummary:
        """Return the summary of what a trainer has done so far."""
        state = trainer.state
        sections = [
            callback.card_section(state.log_history, state.best_global_step, trainer.args.metric_for_best_model)
            for callback in trainer.callback_handler.callbacks
            if hasattr(callback, "card_section")
        ]
        return cls(
            output_dir=Path(str(trainer.args.output_dir)),
            hub_model_id=trainer.hub_model_id,
            base_model=get_config_model_id(trainer.model.config) or "",
            dataset=trainer.train_dataset,
            loss_types=trainer.loss_types,
            beta=trainer.beta,
            log_history=state.log_history,
            sections=[section for section in sections if section],
        )


def hub_dataset(dataset: Any) -> str | None:
    """Return the hub id of a dataset that `load_dataset` downloaded; None for any other."""
    for file in getattr(dataset, "cache_files", []):
        # Where `datasets` keeps what it downloaded: <cache>/<namespace>___<name>/<config>/...
        if found := [part for part in Path(file["filename"]).parts if "___" in part]:
            return found[0].replace("___", "/")
    return None


def is_own_card(path: Path) -> bool:
    """Return whether a run may write its card to a file: there is none, or training wrote what is there.

    Args:
        path: `README.md` of the run's folder.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()
    return not body or body.startswith(_OF_PEFT) or any(mark in text for mark in _OF_TRAINING)


def may_write_card(trainer: Any) -> bool:
    """Return whether this process writes the card of a run; a warning says so where somebody else's is in the way."""
    path = Path(str(trainer.args.output_dir)) / "README.md"
    if not trainer.is_world_process_zero():
        return False
    if not is_own_card(path):
        logger.warning("%s was not written by training and stays as it is; the model gets no card.", path)
        return False
    return True


def complete_card(summary: TrainingSummary) -> None:
    """Rewrite the card that TRL left in the run's folder.

    The quick start is a recommender's. Below it stand the training data with their number of negatives, and what the
    callbacks have to say, such as the ranking of held-out users. The rest of TRL's card stays.
    """
    path = summary.output_dir / "README.md"
    card = ModelCard.load(path)
    begin, heading, rest = card.text.partition("## Quick start\n")
    if heading and Path(summary.base_model).is_dir():  # for a folder, TRL's introduction links to "None"
        title = begin.strip().splitlines()[0]
        begin = f"{title}\n\nThis model is a fine-tuned version of `{Path(summary.base_model).name}`.\n"
        begin += "It has been trained using [TRL](https://github.com/huggingface/trl).\n\n"
    _, next_heading, procedure = rest.partition("\n## ")
    sections = [_quick_start(summary), _training_data(summary), *summary.sections]
    text = f"{begin.rstrip()}\n\n" + "\n\n".join(section.strip() for section in sections) + "\n"
    card.text = f"{text}{next_heading}{procedure}"
    card.save(path)


def _quick_start(summary: TrainingSummary) -> str:
    folder = summary.output_dir
    model = summary.hub_model_id or str(folder)
    history, candidates = ["Alien (1979)"], ["Aliens (1986)", "Babe (1995)"]
    if (folder / "recommender.json").exists():
        import polars as pl

        start = _SAVED.format(model=model)
        titles = pl.read_parquet(folder / "items.parquet", columns=["title"], n_rows=4, glob=False)["title"]
        first, *others = titles.to_list()
        history, candidates = [first], others or [first]
    else:
        first_row: Any = next(iter(summary.dataset), {})
        conversational = isinstance(first_row.get("prompt", first_row.get("chosen")), list)
        start = _OF_A_CATALOGUE.format(model=model, conversational=conversational)
    code = f"{start}\n{_RANK.format(history=history, candidates=candidates)}"
    return f"## Quick start\n\n```bash\npip install .  # in a clone of dmpo-trl\n```\n\n```python\n{code}\n```"


def _training_data(summary: TrainingSummary) -> str:
    dataset = summary.dataset
    name = hub_dataset(dataset)
    if name is not None:
        name = f"[{name}](https://huggingface.co/datasets/{name})"
    elif getattr(dataset, "info", None) is not None and dataset.info.dataset_name:
        name = f"`{dataset.info.dataset_name}`"
    size = f"{len(dataset):,} examples" if isinstance(dataset, Dataset) else "a stream"
    lines = [f"- Dataset: {name or 'in memory'}, {size}."]
    if isinstance(dataset, Dataset) and "rejected_ids" in dataset.column_names:
        lengths = token_lengths(dataset)
        sides = {"Negatives per example (N)": lengths.rejected_per_row}
        if max_num_chosen(dataset) is not None:
            sides = {"Positives per example": lengths.chosen_per_row} | sides
        lines += [
            f"- {name}: {counts.min()} to {counts.max()}, {counts.mean():.2f} on average."
            for name, counts in sides.items()
        ]
    elif logged := [entry["num_rejected"] for entry in summary.log_history if "num_rejected" in entry]:
        lines.append(f"- Negatives per example (N): {np.mean(logged):.2f} on average.")
    lines.append(f"- Loss: {' + '.join(f'`{name}`' for name in summary.loss_types)}, beta = {summary.beta}.")
    return "## Training data\n\n" + "\n".join(lines)
