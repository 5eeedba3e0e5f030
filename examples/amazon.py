"""Amazon Reviews: from a category's reviews and metadata to a recommender of products.

    python examples/amazon.py --path folder --category Gift_Cards        # with Gift_Cards_5.json.gz and its metadata
    python examples/amazon.py --category Video_Games --release 2023 --download

Every user trains and is tested: the last product is for the test, the one before for validation, those before them for
training. A product counts as liked from four stars on. Small categories have few products, which many users share, so
that popularity is hard to beat; the popularity of the negatives is therefore that of the products (`alpha`).
"""

from stages import compare, prepare_data, train_dmpo, train_sft


def main() -> None:
    """Go from raw files to the table."""
    prepared, settings = prepare_data(
        dataset="amazon",
        output_dir="outputs/amazon/data",
        results="outputs/amazon",
        min_rating=4.0,
        split="leave_one_out",
        min_history=1,
        few_shot_users=300,
        test_users=150,
        negative_strategy="popularity",
    )
    sft = train_sft(prepared.sft["train"], settings)
    dmpo = train_dmpo(prepared.preference["train"], sft, settings)
    print(compare(prepared, {"zero-shot": settings.model, "SFT": sft, "DMPO": dmpo}, settings))


if __name__ == "__main__":
    main()
