"""From a pretrained language model to a recommender: SFT, then DMPO, measured on users that neither has seen.

    python examples/quickstart.py

Needs `pip install "dmpo-trl[gguf,plot]"`. By default it fetches SmolLM2-135M-Instruct and MovieLens 100K and takes
less than 20 minutes on two CPU cores. Another model: `--model` with a hub id, a folder or a GGUF file. Other data:
`--data` with a folder of RecBole's atomic files. Everything it writes goes to `--output_dir`:

    metrics.json    all figures, the seconds of each stage, the settings
    training.png    loss, rewards and margins of the DMPO stage
    sft, dmpo       the adapters after each stage; plain peft loads them on the base model
"""

import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.data import (
    MOVIELENS_100K,
    MOVIES,
    SMOLLM2_135M_INSTRUCT,
    DownloadError,
    Interactions,
    cache_dir,
    leave_one_out,
    preference_dataset,
    ranking_dataset,
    read_recbole,
    sample_negatives,
    split_users,
)
from dmpo_trl.evaluation import METRICS, RankingResult, rank_at_random, rank_by_popularity, rank_with_model

COMPARISONS = (("sft", "zero_shot"), ("dmpo", "sft"), ("dmpo", "popularity"))


@dataclass
class Settings:
    """The defaults were chosen on the validation users (`--report validation`), never on the test users."""

    model: str | None = field(default=None, metadata={"help": "Hub id, folder or GGUF file. Default: SmolLM2-135M."})
    data: str | None = field(default=None, metadata={"help": "Folder of RecBole files. Default: MovieLens 100K."})
    title_field: str = field(default="movie_title", metadata={"help": "Field of the .item file with the title."})
    year_field: str | None = field(
        default=None, metadata={"help": "Field of the .item file with the year, to be part of the title."}
    )
    output_dir: Path = field(default=Path("outputs/quickstart"), metadata={"help": "Folder for all results."})
    report: str = field(default="test", metadata={"help": "Users to report on.", "choices": ["test", "validation"]})
    seed: int = 0

    train_users: int = 400
    validation_users: int = 340
    test_users: int = 120
    min_rating: float | None = field(default=4.0, metadata={"help": "Ratings from here on count as liked."})
    history_length: int = field(default=10, metadata={"help": "Films in a prompt."})
    negatives: int = field(default=7, metadata={"help": "Rejected films for each chosen one in training."})
    candidates: int = field(default=20, metadata={"help": "Films to rank: one the user liked, the rest never had."})
    score: str = field(default="mean", metadata={"help": "Rank by log-prob: its sum or its mean a token."})

    lora_rank: int = 16
    batch_size: int = 8
    sft_epochs: float = 1
    sft_learning_rate: float = 5e-4
    dmpo_epochs: float = 1
    dmpo_learning_rate: float = 2e-4
    beta: float = 1.0


def main(arguments: list[str] | None = None) -> None:
    """Runs all stages and writes the results."""
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    plt = import_pyplot()  # before the work, not after it
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    set_seed(settings.seed)
    seconds: dict[str, float] = {}

    with stage("prepare", seconds):
        base = model_folder(settings.model)
        data = read_data(settings)
        sft_data, dmpo_data, report, popularity = make_datasets(data, settings)
        tokenizer = AutoTokenizer.from_pretrained(base)

    def rank(name: str, adapter: Path | None) -> RankingResult:
        model = load(base)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        return rank_with_model(model.eval(), tokenizer, report, score=settings.score, name=name)

    results = {"random": rank_at_random(report), "popularity": rank_by_popularity(report, popularity)}
    with stage("rank zero_shot", seconds):
        results["zero_shot"] = rank("zero_shot", None)
    with stage("train sft", seconds):
        sft = train_sft(base, tokenizer, sft_data, settings)
    with stage("rank sft", seconds):
        results["sft"] = rank("sft", sft)
    with stage("train dmpo", seconds):
        dmpo, history = train_dmpo(base, tokenizer, dmpo_data, sft, settings)
    with stage("rank dmpo", seconds):
        results["dmpo"] = rank("dmpo", dmpo)

    draw_training(plt, history, settings.output_dir / "training.png")
    print_recommendations(results["dmpo"], report, data.titles())
    print_table(results, settings)
    write_metrics(results, seconds, settings)
    print(f"\nThe recommender is in {dmpo}, all figures in {settings.output_dir / 'metrics.json'}.")


def read_data(settings: Settings) -> Interactions:
    """Reads the folder given, or MovieLens 100K."""
    folder = Path(settings.data) if settings.data else MOVIELENS_100K.fetch()[0].parent
    return read_recbole(folder, title_field=settings.title_field, year_field=settings.year_field)


def make_datasets(data: Interactions, settings: Settings) -> tuple[Dataset, Dataset, Dataset, dict[str, int]]:
    """Examples for SFT and for DMPO, rankings to report on, and how often the training users had each film.

    SFT and DMPO share their users, not their targets: DMPO learns from the last film that a user liked, SFT from what
    came before. A target that SFT has seen already is an easy one that teaches DMPO little.
    """
    options = {"min_rating": settings.min_rating, "history_length": settings.history_length}
    sizes = {"train": settings.train_users, "validation": settings.validation_users, "test": settings.test_users}
    last = leave_one_out(data, **options, min_history=2)
    users = split_users(last, sizes, seed=settings.seed)
    had = data.interactions.cast({"user": pl.String, "item": pl.String})
    before = had.join(last, left_on=["user", "item"], right_on=["user", "target"], how="anti")
    earlier = leave_one_out(Interactions(before, data.items), **options)
    earlier = earlier.join(users["train"], on="user", how="semi", maintain_order="left")

    sft = preference_dataset(earlier.with_columns(negatives=[]), data, MOVIES)
    train = sample_negatives(users["train"], data, settings.negatives, seed=settings.seed)
    # Another seed than in training: the two must not share their draws
    report = sample_negatives(users[settings.report], data, settings.candidates - 1, seed=settings.seed + 1)
    popularity = dict(had.join(users["train"], on="user", how="semi").group_by("item").len().iter_rows())
    dmpo = preference_dataset(train, data, MOVIES)
    return sft, dmpo, ranking_dataset(report, data, MOVIES, seed=settings.seed), popularity


def model_folder(model: str | None) -> str:
    """What `from_pretrained` takes. A GGUF file is converted once, so that also peft and TRL find it by its folder."""
    if model is None:
        model = str(SMOLLM2_135M_INSTRUCT.fetch()[0])
    if not model.endswith(".gguf"):
        return model
    file = Path(model).resolve()
    if not file.is_file():
        raise SystemExit(f"There is no model file {file}")
    stat = file.stat()
    folder = cache_dir() / "converted" / f"{file.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if not folder.exists():
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # transformers does not save a model that came from GGUF, so its weights move into one that did not
        config = loaded.config
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed = 4 * plain.num_parameters()
        if shutil.disk_usage(folder.parent).free < needed:
            raise SystemExit(
                f"{folder} needs {needed / 1e9:.1f} GB. Free some, or set DMPO_TRL_CACHE to another disk."
            )
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            plain.save_pretrained(Path(scratch) / "model")
            tokenizer.save_pretrained(Path(scratch) / "model")
            (Path(scratch) / "model").rename(folder)  # whole or not at all
    return str(folder)


def load(base: str) -> PreTrainedModel:
    """The base model in float32: CPUs without bf16 instructions are many times slower in half precision."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def training_arguments(settings: Settings, stage_dir: Path, epochs: float, learning_rate: float) -> dict:
    """What the two stages have in common."""
    return {
        "output_dir": str(stage_dir),
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "optim": "adamw_torch_fused",
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 5,
        "logging_first_step": True,  # so that the shortest run has something to draw
        "save_strategy": "no",
        "report_to": "none",
        "seed": settings.seed,
    }


def train_sft(base: str, tokenizer: PreTrainedTokenizerBase, train: Dataset, settings: Settings) -> Path:
    """Teaches the task and its format: the chosen film after each history. Returns the adapter's folder."""
    folder = settings.output_dir / "sft"
    lora = LoraConfig(
        r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=load(base),
        args=SFTConfig(
            **training_arguments(settings, folder, settings.sft_epochs, settings.sft_learning_rate),
            # The films of the history are as good a lesson as the one that came next, and cost nothing more
            completion_only_loss=False,
        ),
        train_dataset=train.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion"),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.train()
    trainer.model.save_pretrained(folder)
    return folder


def train_dmpo(
    base: str, tokenizer: PreTrainedTokenizerBase, train: Dataset, sft: Path, settings: Settings
) -> tuple[Path, list[dict]]:
    """Continues the SFT adapter against the rejected films. Returns the adapter's folder and the logged values."""
    folder = settings.output_dir / "dmpo"
    trainer = DMPOTrainer(
        # A model that comes with an adapter: TRL keeps a frozen copy of it, named "ref", as the reference
        model=PeftModel.from_pretrained(load(base), sft, is_trainable=True),
        args=DMPOConfig(
            **training_arguments(settings, folder, settings.dmpo_epochs, settings.dmpo_learning_rate),
            beta=settings.beta,
            precompute_ref_log_probs=settings.dmpo_epochs > 1,  # computed once instead of once an epoch
        ),
        train_dataset=train,
        processing_class=tokenizer,
    )
    trainer.train()
    # One adapter, without the reference's, so that plain peft loads the recommender and nothing else
    trainer.model.save_pretrained(folder, selected_adapters=["default"])
    return folder, trainer.state.log_history


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announces a stage and notes how long it took."""
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def print_table(results: dict[str, RankingResult], settings: Settings) -> None:
    """All rankers with 95% bootstrap intervals over users, then the paired differences of the stages."""
    users = len(results["dmpo"].users)
    print(f"\n{users} {settings.report} users, {settings.candidates} candidates, scored by the {settings.score} of")
    print("log-probs; mean [95% bootstrap interval over users], differences paired by user")
    rows = {name: result.intervals() for name, result in results.items()}
    rows |= {f"{name} - {other}": results[name].minus(results[other]) for name, other in COMPARISONS}
    print(f"{'':<18}" + "".join(f"{metric:>23}" for metric in METRICS))
    for name, intervals in rows.items():
        print(f"{name:<18}" + "".join(f"{intervals[metric]!s:>23}" for metric in METRICS))


def print_recommendations(result: RankingResult, report: Dataset, titles: dict[str, str], users: int = 5) -> None:
    """Histories of the first users with the five best candidates, the film that the user really liked next marked."""
    for row, scores in zip(report.select(range(min(users, len(report)))), result.scores, strict=False):
        print(f"\nUser {row['user']} liked: " + "; ".join(titles[item] for item in row["history"]))
        for place, index in enumerate((-scores).argsort()[:5], start=1):
            mark = "  <- liked next" if index == row["positive"] else ""
            print(f"  {place}. {titles[row['items'][index]]}{mark}")


def write_metrics(results: dict[str, RankingResult], seconds: dict[str, float], settings: Settings) -> None:
    """Writes metrics.json."""
    figures: dict = {name: result.metrics() for name, result in results.items()}
    figures["intervals"] = {
        name: {metric: [interval.low, interval.high] for metric, interval in result.intervals().items()}
        for name, result in results.items()
    }
    figures["differences"] = {
        f"{name} - {other}": {m: asdict(interval) for m, interval in results[name].minus(results[other]).items()}
        for name, other in COMPARISONS
    }
    figures["seconds"] = seconds
    figures["settings"] = asdict(settings)
    (settings.output_dir / "metrics.json").write_text(json.dumps(figures, indent=2, default=str) + "\n")


def import_pyplot():
    """Matplotlib without a display."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit('The picture needs matplotlib: pip install "dmpo-trl[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_training(plt, history: list[dict], path: Path) -> None:
    """Draws loss, rewards and margins of the DMPO stage."""
    logs = [entry for entry in history if "loss" in entry]  # the summary at the end has none
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    panels = {"loss": ["loss"], "rewards": ["rewards/chosen", "rewards/rejected"], "margins": ["rewards/margins"]}
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for key in keys:
            axis.plot([entry["epoch"] for entry in logs], [entry[key] for entry in logs], label=key)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    try:
        main()
    except DownloadError as error:
        sys.exit(str(error))
