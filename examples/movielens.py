"""MovieLens: from the ratings file to a recommender of films.

    python examples/movielens.py --path ml-1m.zip              # any release: a folder, an archive, a ratings file
    python examples/movielens.py --version 100k --download     # from its official address

Some users train the model, others test it. A film counts as liked from four stars on. The question is the last film
that a test user liked, among films that the user never rated. `--help` lists the options of preparation and training.
"""

from dataclasses import dataclass

from stages import Training, compare, train_dmpo, train_sft
from trl import TrlParser

from dmpo_trl.data import PrepareConfig, leak_report, prepare
from dmpo_trl.recommend import Recommender


@dataclass
class Data(PrepareConfig):
    """What is read, and how it is split."""

    dataset: str = "movielens"
    output_dir: str = "outputs/movielens/data"
    min_rating: float | None = 4.0
    split: str = "users"
    train_users: int | None = 300
    validation_users: int | None = 100
    test_users: int | None = 150


@dataclass
class Settings(Training):
    """Model and training."""

    results: str = "outputs/movielens"


def main() -> None:
    """From raw files to the table, a recommendation and its explanation."""
    data, settings = TrlParser((Data, Settings)).parse_args_and_config()

    # Raw files -> datasets, with a manifest of what was read, dropped and drawn
    prepared = prepare(data)
    print(leak_report(prepared.preference["train"], prepared.ranking["test"]))

    # SFT teaches the task, DMPO the preference for the chosen film over seven rejected ones
    sft = train_sft(prepared.sft["train"], settings)
    dmpo = train_dmpo(prepared.preference["train"], sft, settings)
    print(compare(prepared, {"zero-shot": settings.model, "SFT": sft, "DMPO": dmpo}, settings))

    # The whole catalogue: a search that only titles of films can come out of
    recommender = Recommender.from_pretrained(dmpo, data=prepared.folder)
    user = prepared.ranking["test"][0]
    recommended = recommender.recommend(user["history"], k=5, exclude=user["seen"])
    for film in recommended:
        print(f"{film.score:8.2f}  {film.title}")
    print(recommender.explain(user["history"], recommended[0].item))


if __name__ == "__main__":
    main()
