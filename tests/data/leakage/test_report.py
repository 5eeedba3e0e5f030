"""Each leak is planted in clean data and found; clean data shows none. The published leaks, where the files are."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from dmpo_trl.data import (
    MOVIES,
    Interactions,
    leak_report,
    leak_report_of_files,
    leave_one_out,
    next_items,
    preference_dataset,
    ranking_dataset,
    read_dmpo,
    read_recbole,
    read_sdpo,
    sample_negatives,
    sft_dataset,
    split_leave_one_out,
    split_users,
)
from dmpo_trl.data.leakage._baselines import choose_without_history
from dmpo_trl.data.leakage._rows import comparable

ITEMS = [f"item {number:03}" for number in range(150)]
SHOP = ", ".join(ITEMS)  # the most popular first


def popular_items(seed: int, users: int = 300) -> Interactions:
    """Items are had as often as in a catalogue: a few by many, most by few."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(ITEMS) + 1)
    rows = [
        (f"user {user}", ITEMS[item], time)
        for user in range(users)
        for time, item in enumerate(
            rng.choice(len(ITEMS), rng.integers(6, 20), replace=False, p=weights / sum(weights))
        )
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    return Interactions(table, pl.DataFrame({"item": ITEMS, "title": [item.title() for item in ITEMS]}))


def clean_parts(data: Interactions, seed: int, strategy: str = "uniform", n: int = 9) -> dict[str, pl.DataFrame]:
    users = data.interactions["user"].n_unique()
    examples = split_users(next_items(data, min_history=1), {"train": users * 7 // 10, "test": users // 5}, seed=seed)
    return {part: sample_negatives(rows, data, n, seed=seed, strategy=strategy) for part, rows in examples.items()}


@pytest.fixture(scope="module")
def clean() -> dict[str, pl.DataFrame]:
    return clean_parts(popular_items(0), 0)


def found(train: pl.DataFrame | Dataset, test: pl.DataFrame | Dataset) -> set[tuple[str, str]]:
    """What is found, each kind of it with a remedy."""
    report = leak_report(train, test)
    names = {check.name for check in report.findings}
    assert str(report).count("\n- ") == len(names)
    return {(check.name, check.part) for check in report.findings}


@pytest.mark.parametrize("strategy", ["uniform", "popularity"])
@pytest.mark.parametrize("seed", range(6))
def test_a_clean_set_has_no_findings(seed, strategy):
    parts = clean_parts(popular_items(seed), seed, strategy)
    report = leak_report(parts["train"], parts["test"])
    assert report.findings == []
    assert str(report).endswith("No leak found.")


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_leave_one_out_split_has_no_findings(seed):
    data = popular_items(seed)
    parts = split_leave_one_out(data)
    train = sample_negatives(parts["train"], data, 4, seed=seed)
    assert found(train, sample_negatives(parts["test"], data, 9, seed=seed + 100)) == set()


@pytest.mark.parametrize("conversational", [True, False])
def test_clean_datasets_of_text_have_no_findings(clean, conversational):
    data = popular_items(0)
    template = MOVIES if conversational else MOVIES.plain()
    test = ranking_dataset(clean["test"], data, template, seed=0)
    assert found(preference_dataset(clean["train"], data, template), test) == set()
    assert found(sft_dataset(clean["train"], data, template), test) == set()


def test_repeated_rows_are_found(clean):
    taken = clean["train"][[5, 70, 300]]
    test = pl.concat([clean["test"][:50], taken.with_columns(pl.col("negatives").list.reverse())])
    report = leak_report(clean["train"], test)
    assert [(check.name, check.rows) for check in report.findings] == [("repeated rows", (50, 51, 52))]


def test_a_row_with_fewer_negatives_repeats_one_with_more(clean):
    test = clean["train"][7:8].with_columns(pl.col("negatives").list.head(1))
    assert leak_report(clean["train"], test)["repeated rows"][0].rows == (0,)
    # but one with a negative that training never rejected does not
    test = test.with_columns(negatives=pl.concat_list("negatives", pl.lit("item new")))
    assert leak_report(clean["train"], test)["repeated rows"][0].rows == ()


def test_repeated_histories_with_other_negatives_are_found(clean):
    long = clean["train"].filter(pl.col("history").list.len() > 4).head(60)
    fresh = sample_negatives(long.drop("negatives"), popular_items(0), 9, seed=99)
    report = leak_report(clean["train"], fresh)
    assert {check.name for check in report.findings} == {"repeated histories"}
    assert report["repeated histories"][0].rows == tuple(range(60))


def test_short_histories_shared_by_chance_are_no_finding():
    # Everybody begins with one of two items, and goes on with any of ten
    rng = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "history": [[ITEMS[i]] for i in rng.integers(0, 2, 600)],
            "target": [ITEMS[i] for i in rng.integers(2, 12, 600)],
        }
    )
    report = leak_report(rows[:400], rows[400:])
    assert report.findings == []
    assert report["repeated histories"][0].text.startswith("200 of 200 test histories are in train")


@pytest.mark.parametrize("part", ["train", "test"])
def test_rows_twice_are_found(clean, part):
    rows = clean[part]
    parts = clean | {part: pl.concat([rows, rows[3:5].with_columns(pl.col("negatives").list.reverse())])}
    report = leak_report(parts["train"], parts["test"])
    assert [(check.name, check.part, check.rows) for check in report.findings] == [
        ("rows twice", part, (rows.height, rows.height + 1))
    ]


@pytest.mark.parametrize("bad", [pl.col("target"), pl.col("history").list.first()])
def test_bad_negatives_are_found(clean, bad):
    spoilt = pl.when(pl.int_range(pl.len()) == 11).then(pl.concat_list("negatives", bad)).otherwise("negatives")
    report = leak_report(clean["train"].with_columns(negatives=spoilt), clean["test"])
    assert [(check.name, check.part, check.rows) for check in report.findings] == [("negatives", "train", (11,))]


def with_target_at(rows: pl.DataFrame, places: np.ndarray) -> pl.DataFrame:
    candidates = [
        [*negatives[:place], target, *negatives[place:]]
        for (target, negatives), place in zip(rows.select("target", "negatives").iter_rows(), places, strict=True)
    ]
    return rows.drop("negatives").with_columns(candidates=pl.Series(candidates))


def test_a_biased_place_is_found_and_an_even_one_is_not(clean):
    train, test, rng = clean["train"], clean["test"], np.random.default_rng(0)
    even = with_target_at(test, rng.integers(0, 10, test.height))
    assert found(train, even) == set()
    for places in (np.zeros(test.height, int), np.full(test.height, 9), rng.integers(0, 2, test.height)):
        assert found(train, with_target_at(test, places)) == {("place of target", "test")}
    # "last" is another place in each row
    few = test.unique("user", maintain_order=True).head(27)
    ragged = few.with_columns(pl.col("negatives").list.head(pl.int_range(pl.len()) % 9 + 1))
    last = with_target_at(ragged, ragged["negatives"].list.len().to_numpy())
    assert found(train, last) == {("place of target", "test")}


def test_users_whose_rows_share_a_place_are_no_bias(clean):
    test, rng = clean["test"], np.random.default_rng(1)
    by_user = {user: int(rng.integers(0, 10)) for user in test["user"].unique(maintain_order=True)}
    assert found(clean["train"], with_target_at(test, np.array([by_user[user] for user in test["user"]]))) == set()


def listed_in_prompt(rows: pl.DataFrame, places: np.ndarray, conversational: bool) -> Dataset:
    def message(role: str, text: str):
        return [{"role": role, "content": text}] if conversational else text

    out = []
    for candidates, (history, target) in zip(
        with_target_at(rows, places)["candidates"], rows.select("history", "target").iter_rows(), strict=True
    ):
        out.append(
            {
                "prompt": message(
                    "user", f"We sell {SHOP}. Liked {', '.join(history)}. Choose one of {', '.join(candidates)}."
                ),
                "chosen": message("assistant", target),
                "rejected": [message("assistant", item) for item in candidates if item != target],
            }
        )
    return Dataset.from_list(out)


@pytest.mark.parametrize("conversational", [True, False])
def test_a_biased_place_in_the_prompt_is_found(clean, conversational):
    rng = np.random.default_rng(0)
    train, test = clean["train"][:400], clean["test"][:200]
    even = listed_in_prompt(train, rng.integers(0, 10, 400), conversational)
    assert found(even, listed_in_prompt(test, rng.integers(0, 10, 200), conversational)) == set()
    first = listed_in_prompt(test, np.zeros(200, int), conversational)
    assert found(even, first) == {("place of target", "test")}


def seeded_by_target(rows: pl.DataFrame, share: float = 1.0) -> pl.DataFrame:
    """As S-DPO's LastFM files: the target seeds the negatives, here of a share of the targets."""
    negatives = []
    for history, target, given in rows.select("history", "target", "negatives").iter_rows():
        seed = ITEMS.index(target)
        pool = [item for item in ITEMS if item != target and item not in history]
        drawn = np.random.default_rng(seed).permutation(len(ITEMS))
        chosen = [ITEMS[i] for i in drawn if ITEMS[i] in pool][:9]
        negatives.append(chosen if seed < share * len(ITEMS) else given)
    return rows.with_columns(negatives=pl.Series(negatives))


def test_negatives_seeded_by_the_target_are_found(clean):
    report = leak_report(seeded_by_target(clean["train"]), seeded_by_target(clean["test"]))
    (overlap,) = report["candidate overlap"]
    assert overlap.found
    assert overlap.values["hr@1"] > 0.9
    assert report["popularity"][0].values["hr@1"] < 0.7
    assert "! candidate overlap" in str(report)


def test_baselines_equal_their_definition(clean):
    """On rows where no two choices tie, which random tie-breaking could tell apart."""
    train, test = clean["train"][:300], clean["test"][:120]
    choices = choose_without_history(comparable(train), comparable(test))
    count = Counter(train["target"])
    checked = 0
    for row, (target, negatives) in enumerate(test.select("target", "negatives").iter_rows()):
        candidates = {target, *negatives}
        assert choices.chance[row] == pytest.approx(1 / len(candidates))
        top = max(count[item] for item in candidates)
        popular = [item for item in candidates if count[item] == top]
        if len(popular) == 1:
            assert choices.popularity[row] == (popular[0] == target)
            checked += 1
        overlaps = [
            (len(candidates & {other, *others}), other)
            for other, others in train.select("target", "negatives").iter_rows()
            if other in candidates
        ]
        nearest = {other for overlap, other in overlaps if overlap == max(overlaps)[0]}
        if len(nearest) == 1:
            assert choices.overlap[row] == (nearest == {target})
            checked += 1
    assert checked > 100


def test_overlap_guesses_where_no_training_target_is_a_candidate(clean):
    train = clean["train"][:1].with_columns(target=pl.lit("item of no list"))
    choices = choose_without_history(comparable(train), comparable(clean["test"]))
    n, chance = len(choices.chance), choices.chance.mean()
    assert abs(choices.overlap.sum() - n * chance) < 5 * (n * chance) ** 0.5  # 5 standard deviations


def test_one_row_per_user_is_marked(clean):
    choices = choose_without_history(comparable(clean["train"]), comparable(clean["test"]))
    assert choices.one_per_user.sum() == clean["test"]["user"].n_unique()


def test_forms_must_be_known_and_alike(clean):
    with pytest.raises(ValueError, match=r"(?s)does not know rows with the columns.*ranking:"):
        leak_report(pl.DataFrame({"text": ["a"]}), clean["test"])
    text = sft_dataset(clean["train"], popular_items(0), MOVIES)
    with pytest.raises(ValueError, match="One part holds text"):
        leak_report(text, clean["test"])
    with pytest.raises(ValueError, match="train has no rows"):
        leak_report(clean["train"][:0], clean["test"])
    with pytest.raises(ValueError, match="Row 0: its candidates lack its target"):
        leak_report(
            clean["train"],
            with_target_at(clean["test"], np.zeros(clean["test"].height, int)).with_columns(target=pl.lit("item new")),
        )


def test_rows_with_several_targets_are_refused_with_the_remedy(clean):
    rows = pl.DataFrame({"prompt": ["p", "q"], "chosen": [["a", "b"], ["c"]], "rejected": [["x"], ["y"]]})
    with pytest.raises(
        ValueError, match=r'`chosen` holds lists: give each target a row of its own, .*explode\("chosen"\)'
    ):
        leak_report(rows, rows)
    assert comparable(rows.explode("chosen"))["target"].to_list() == ["a", "b", "c"]
    messages = [[{"role": "assistant", "content": "a"}]]
    one = pl.DataFrame({"prompt": ["p"], "chosen": messages, "rejected": [messages]})
    assert comparable(one)["target"].to_list() == ["a"]
    with pytest.raises(ValueError, match="`chosen` holds lists"):
        comparable(one.with_columns(chosen=pl.Series([messages])))
    with pytest.raises(ValueError, match="`target` holds lists"):
        comparable(clean["train"].with_columns(target=pl.concat_list("target")))


def test_rejected_in_other_columns_is_the_same():
    whole = {"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": [["x", "y"], ["x"]]}
    numbered = {"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected1": ["x", "x"], "rejected2": ["y", None]}
    assert comparable(Dataset.from_dict(whole)).equals(comparable(Dataset.from_dict(numbered)))
    for first in (["x", "x"], [["x"], ["x"]]):  # as the trainer takes them: one beside the other
        both = {"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": first, "rejected1": ["y", None]}
        assert comparable(Dataset.from_dict(whole)).equals(comparable(Dataset.from_dict(both)))
    empty = both | {"rejected1": [None, None]}
    assert comparable(Dataset.from_dict(empty))["negatives"].to_list() == [["x"], ["x"]]
    single = comparable(Dataset.from_dict({"prompt": ["p"], "chosen": ["a"], "rejected": ["x"]}))
    assert single["negatives"].to_list() == [["x"]]


def test_history_of_a_ranking_dataset_is_checked(clean):
    data = popular_items(0)
    test = ranking_dataset(clean["test"][:20], data, MOVIES, seed=0)

    def spoil(row: dict, number: int) -> dict:
        negative = row["items"][row["positive"] - 1]
        return {"history": [negative]} if number == 4 else {}

    spoilt = test.map(spoil, with_indices=True)
    report = leak_report(preference_dataset(clean["train"], data, MOVIES), spoilt)
    assert [(check.name, check.part, check.rows) for check in report.findings] == [("negatives", "test", (4,))]


def test_files_and_prepared_folders(clean, tmp_path):
    data = popular_items(0)
    for part, rows in clean.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(rows.to_dicts()), encoding="utf-8")
        rows.write_ndjson(tmp_path / f"{part}.jsonl")
    expected = str(leak_report(clean["train"], clean["test"]))
    assert str(leak_report_of_files(tmp_path / "train.json", tmp_path / "test.jsonl")) == expected
    for name, dataset in (
        ("preference/train", preference_dataset(clean["train"], data, MOVIES)),
        ("ranking/test", ranking_dataset(clean["test"], data, MOVIES, seed=0)),
    ):
        (tmp_path / name).parent.mkdir()
        dataset.to_parquet(tmp_path / f"{name}.parquet")
    assert leak_report_of_files(tmp_path).findings == []
    with pytest.raises(FileNotFoundError):
        leak_report_of_files(tmp_path / "train.json", tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read"):
        leak_report_of_files(tmp_path / "train.json", tmp_path / "bad.parquet")


def test_raw_rows_of_sdpo_and_dmpo_are_understood():
    sdpo = pl.DataFrame({"historyList": ["A::B"], "itemList": [["C", "D", "E"]], "trueSelection": ["D"]})
    (row,) = comparable(sdpo).select("target", "negatives", "places", "options").rows()
    assert row == ("D", ["C", "E"], [1], 3)
    question = "History:  <Title:A>  <Title:B> . Rank the likelihood of the two  <Title:C>  and  <Title:D> ."
    dmpo = pl.DataFrame({"instruction": [question], "input": [""], "output": [" <Title:D> ,  <Title:C> "]})
    (row,) = comparable(dmpo).select("target", "negatives", "places", "options").rows()
    assert row == ("D", ["C"], [1], 2)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_real_shortcut_of_sdpo(shared, part):
    examples = read_sdpo(shared / "lastfm-llm-splits").examples
    report = leak_report(examples["train"], examples[part])
    (overlap,) = report["candidate overlap"]
    assert overlap in report.findings
    # 0.980 where choosing an item that is no candidate counts as a miss; this baseline keeps to the candidates
    assert overlap.values["hr@1"] > 0.98
    assert report["popularity"][0].values["hr@1"] < 0.3


def test_real_shortcut_goes_when_the_negatives_are_drawn_anew(shared):
    data, examples = read_sdpo(shared / "lastfm-llm-splits")
    train = sample_negatives(examples["train"].drop("candidates", "negatives").head(10_000), data, 19, seed=1)
    test = sample_negatives(examples["test"].drop("candidates", "negatives"), data, 19, seed=2)
    assert found(train, test) == set()


@pytest.mark.parametrize("part", ["sft", "dpo_2", "dpo_3", "dpo_4", "dpo_5"])
def test_real_leak_of_dmpo(shared, part):
    examples = read_dmpo(shared / "dmpo", "Amazon_Game").examples
    report = leak_report(examples[part], examples["eval"])
    rows = (1, 2, 6, 8, 12, 13, 15, 17, 18, 19, 21, 22, 23, 27, 28)
    assert report["repeated rows"][0].rows == rows
    assert {check.name for check in report.findings} == {"repeated rows", "repeated histories"}
    raw = [shared / "dmpo" / f"rec_Amazon_Game_{name}.json" for name in ("dpo_ranking_5", "eval_ranking")]
    assert leak_report_of_files(*raw)["repeated rows"][0].rows == rows


def test_real_negative_in_a_history_of_dmpo(shared):
    for dataset, count in (("data_ml_1m", 1), ("Amazon_Movie", 0)):
        examples = read_dmpo(shared / "dmpo", dataset).examples
        findings = leak_report(examples["dpo_5"], examples["eval"]).findings
        assert [(check.name, check.part, len(check.rows)) for check in findings] == [("negatives", "train", 1)] * count


@pytest.mark.parametrize("seed", range(3))
def test_real_movielens_is_clean(shared, seed):
    data = read_recbole(shared / "ml-100k-recbole", title_field="movie_title", year_field="release_year")
    examples = split_users(leave_one_out(data, min_rating=4), {"train": 600, "test": 300}, seed=seed)
    parts = {part: sample_negatives(rows, data, 19, seed=seed) for part, rows in examples.items()}
    assert found(parts["train"], parts["test"]) == set()
    every = split_users(next_items(data, min_rating=4, per_user=20), {"train": 700, "test": 200}, seed=seed)
    parts = {part: sample_negatives(rows, data, 9, seed=seed) for part, rows in every.items()}
    assert found(parts["train"], parts["test"]) == set()


@pytest.mark.parametrize(
    "row", ['{"prompt": null, "chosen": null, "rejected": null}', '{"prompt": {"a": 1}, "chosen": 2}']
)
def test_columns_of_another_type_are_refused_with_the_file(row, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{row}\n")
    with pytest.raises(ValueError, match=rf"{file} has columns of another type than the report reads \("):
        leak_report_of_files(file, file)
