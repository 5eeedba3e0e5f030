"""Amazon Reviews: from a category's reviews and metadata to a recommender of products.

    python examples/amazon.py --path folder --category Gift_Cards        # with Gift_Cards_5.json.gz and its metadata
    python examples/amazon.py --category Video_Games --release 2023 --download

Every user trains and is tested: the last product is for the test, the one before for validation, those before them for
training. A product counts as liked from four stars on. Small categories have few products, which many users share, so
that popularity is hard to beat; the popularity of the negatives is therefore that of the products (`alpha`).
"""

from dataclasses import dataclass

from stages import Training, compare, train_dmpo, train_sft
from trl import TrlParser

from dmpo_trl.data import PrepareConfig, leak_report, prepare


@dataclass
class Data(PrepareConfig):
    """What is read, and how it is split."""

    dataset: str = "amazon"
    output_dir: str = "outputs/amazon/data"
    min_rating: float | None = 4.0
    split: str = "leave_one_out"
    min_history: int = 1
    few_shot_users: int | None = 300
    test_users: int | None = 150
    negative_strategy: str = "popularity"


@dataclass
class Settings(Training):
    """Model and training."""

    results: str = "outputs/amazon"


def main() -> None:
    """From raw files to the table."""
    data, settings = TrlParser((Data, Settings)).parse_args_and_config()
    prepared = prepare(data)
    print(leak_report(prepared.preference["train"], prepared.ranking["test"]))
    sft = train_sft(prepared.sft["train"], settings)
    dmpo = train_dmpo(prepared.preference["train"], sft, settings)
    print(compare(prepared, {"zero-shot": settings.model, "SFT": sft, "DMPO": dmpo}, settings))


if __name__ == "__main__":
    main()
