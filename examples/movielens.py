"""MovieLens: from the ratings file to a recommender of films.

    python examples/movielens.py --path ml-1m.zip              # any release: a folder, an archive, a ratings file
    python examples/movielens.py --version 100k --download     # from its official address

Some users train the model, others test it. A film counts as liked from four stars on. The question is the last film
that a test user liked, among films that the user never rated. `--help` lists the options of preparation and training.
"""

from stages import compare, prepare_data, train_dmpo, train_sft

from dmpo_trl.recommend import Recommender


def main() -> None:
    """Go from raw files to the table, a recommendation and its explanation."""
    prepared, settings = prepare_data(
        dataset="movielens",
        output_dir="outputs/movielens/data",
        results="outputs/movielens",
        min_rating=4.0,
        split="users",
        train_users=300,
        validation_users=100,
        test_users=150,
    )

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
