import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import make_tokenizer
from trl import extract_prompt

from dmpo_trl.preprocessing.format import RowError, numbered_columns
from dmpo_trl.preprocessing.tokenize import tokenize_row


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def tokenize(tokenizer, row, **options):
    options = {"max_length": None, "truncation_mode": "keep_start"} | options
    return tokenize_row(row, 17, dataset_name="train", processing_class=tokenizer, **options)


def message(content, role="assistant"):
    return [{"role": role, "content": content}]


def decoded(tokenizer, row):
    return (
        tokenizer.decode(row["prompt_ids"]),
        tokenizer.decode(row["chosen_ids"]),
        [tokenizer.decode(ids) for ids in row["rejected_ids"]],
    )


def test_standard_rows_get_an_end_of_sequence_token_once(tokenizer):
    row = tokenize(tokenizer, {"prompt": "Next:", "chosen": " Alien", "rejected": [" Babe</s>", " Heidi"]})
    assert decoded(tokenizer, row) == ("Next:", " Alien</s>", [" Babe</s>", " Heidi</s>"])


def test_conversational_rows_go_through_the_chat_template(tokenizer):
    row = {
        "prompt": message("Next?", "user"),
        "chosen": message("Alien"),
        "rejected": [message("Babe"), message("Ox")],
    }
    assert decoded(tokenizer, tokenize(tokenizer, row)) == (
        "<|user|>Next?</s><|assistant|>",
        "Alien</s>",
        ["Babe</s>", "Ox</s>"],
    )


def test_one_completion_instead_of_a_list(tokenizer):
    assert tokenize(tokenizer, {"prompt": "a", "chosen": "b", "rejected": "c"}) == tokenize(
        tokenizer, {"prompt": "a", "chosen": "b", "rejected": ["c"]}
    )
    row = {"prompt": message("a", "user"), "chosen": message("b"), "rejected": message("c")}
    assert tokenize(tokenizer, row) == tokenize(tokenizer, {**row, "rejected": [row["rejected"]]})


@pytest.mark.parametrize("name", ["rejected", "negative_", "rejected_"])
def test_numbered_columns_are_folded_in_the_order_of_their_numbers(tokenizer, name):
    texts = [f" t{i}" for i in range(11)]
    row = {"prompt": "a", "chosen": " b"} | {f"{name}{i + 1}": text for i, text in enumerate(texts)}
    row[f"{name}3"] = None  # this row has one fewer
    expected = [text for i, text in enumerate(texts) if i != 2]
    assert tokenize(tokenizer, row) == tokenize(tokenizer, {"prompt": "a", "chosen": " b", "rejected": expected})


def test_several_chosen_completions_are_a_list_of_lists(tokenizer):
    row = {"prompt": "Next:", "chosen": [" Alien", " Aliens"], "rejected": [" Babe"]}
    found = tokenize(tokenizer, row)
    singles = [tokenize(tokenizer, {**row, "chosen": text}) for text in row["chosen"]]
    assert found["chosen_ids"] == [one["chosen_ids"] for one in singles]
    assert (found["prompt_ids"], found["rejected_ids"]) == (singles[0]["prompt_ids"], singles[0]["rejected_ids"])
    one = tokenize(tokenizer, {**row, "chosen": [" Alien"]})
    assert one == singles[0] | {"chosen_ids": [singles[0]["chosen_ids"]]}
    messages = {
        "prompt": message("Next?", "user"),
        "chosen": [message("Alien"), message("Aliens")],
        "rejected": [message("Babe")],
    }
    found = tokenize(tokenizer, messages)
    assert [tokenizer.decode(ids) for ids in found["chosen_ids"]] == ["Alien</s>", "Aliens</s>"]
    ids = {name: found[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    assert tokenize(tokenizer, ids) == found


def test_an_implicit_prompt_is_what_all_chosen_ones_share_too(tokenizer):
    row = {"chosen": ["Next: Alien", "Next: Babe"], "rejected": ["Next: Aliens"]}
    explicit = {"prompt": "Next:", "chosen": [" Alien", " Babe"], "rejected": [" Aliens"]}
    assert tokenize(tokenizer, row) == tokenize(tokenizer, explicit)


def test_keep_completion_leaves_room_for_the_longest_chosen_one(tokenizer):
    row = {"prompt": "Watched: Alien, Babe, Heidi. Next:", "chosen": [" Ox", " The Matrix"], "rejected": [" O"]}
    whole = tokenize(tokenizer, row)
    longest = max(map(len, whole["chosen_ids"]))
    assert longest > len(whole["rejected_ids"][0])
    short = tokenize(tokenizer, row, max_length=longest + 3, truncation_mode="keep_completion")
    assert short["prompt_ids"] == whole["prompt_ids"][-3:]
    assert short["chosen_ids"] == whole["chosen_ids"]


def test_numbered_columns_ignore_everything_else():
    assert numbered_columns(["rejected", "rejected_ids", "negatives", "rejected2", "rejected10", "rejected1"]) == [
        "rejected1",
        "rejected2",
        "rejected10",
    ]


def test_implicit_prompts_are_what_all_completions_share(tokenizer):
    user = message("Next?", "user")
    row = {"chosen": user + message("Alien"), "rejected": [user + message("Babe"), user + message("Heidi")]}
    explicit = {"prompt": user, "chosen": message("Alien"), "rejected": [message("Babe"), message("Heidi")]}
    assert tokenize(tokenizer, row) == tokenize(tokenizer, explicit)
    row = {"chosen": "Next: Alien", "rejected": ["Next: Aliens", "Next: Babe", "Next: Ali"]}
    explicit = {"prompt": "Next:", "chosen": " Alien", "rejected": [" Aliens", " Babe", " Ali"]}
    assert tokenize(tokenizer, row) == tokenize(tokenizer, explicit)


# Two characters in common leave a prompt of at least one
@given(*[st.text("ab ", min_size=size, max_size=8) for size in (2, 0, 0)])
def test_implicit_prompts_of_pairs_are_trls(beginning, chosen, rejected):
    tokenizer = make_tokenizer()
    assume(chosen != rejected)
    chosen, rejected = beginning + chosen, beginning + rejected
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert tokenize(tokenizer, {"chosen": chosen, "rejected": [rejected]}) == tokenize(
        tokenizer, {**expected, "rejected": [expected["rejected"]]}
    )


def test_a_prompt_that_ends_mid_token_is_split_where_the_tokens_diverge(tokenizer):
    # "Ali" + "en" is one token: the prompt's own tokens are no prefix of the whole
    row = tokenize(tokenizer, {"prompt": "Watched: Ali", "chosen": "en", "rejected": ["ens", "ce"]})
    whole = tokenizer("Watched: Alien</s>")["input_ids"]
    assert row["prompt_ids"] + row["chosen_ids"] == whole
    assert row["prompt_ids"] + row["rejected_ids"][1] == tokenizer("Watched: Alice</s>")["input_ids"]


def test_keep_completion_shortens_the_prompt_for_its_longest_completion(tokenizer):
    row = {"prompt": "Watched: Alien, Babe, Heidi, Toy Story. Next:", "chosen": " Ox", "rejected": [" The Matrix"]}
    whole = tokenize(tokenizer, row)
    limit = max(map(len, (whole["chosen_ids"], *whole["rejected_ids"]))) + 4
    short = tokenize(tokenizer, row, max_length=limit, truncation_mode="keep_completion")
    assert short["prompt_ids"] == whole["prompt_ids"][-4:]
    assert (short["chosen_ids"], short["rejected_ids"]) == (whole["chosen_ids"], whole["rejected_ids"])
    assert short["prompt_tokens_cut"] == len(whole["prompt_ids"]) - 4
    with pytest.raises(RowError, match=r"Row 17 .* leaves no room for a prompt in max_length=2"):
        tokenize(tokenizer, row, max_length=2, truncation_mode="keep_completion")


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": []}, "rejected", "the list is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected", "got None"),
        ({"prompt": "a", "chosen": "b", "rejected": ["c", None]}, "rejected", "entry 1 should be text"),
        ({"prompt": "a", "chosen": "b", "rejected": ["c", 3]}, "rejected", "entry 1 should be text.* is 3"),
        ({"prompt": "a", "chosen": "b", "rejected": ["c", "b"]}, "rejected", "entry 1 equals the chosen"),
        ({"prompt": "a", "chosen": "b", "rejected": [message("c")]}, "rejected", "entry 0 should be text"),
        ({"prompt": "a", "chosen": None, "rejected": ["c"]}, "chosen", "got None"),
        ({"prompt": "a", "chosen": [], "rejected": ["c"]}, "chosen", "the list is empty"),
        ({"prompt": "a", "chosen": ["b", None], "rejected": ["c"]}, "chosen", "entry 1 should be text, but is None"),
        ({"prompt": "a", "chosen": [3, "b"], "rejected": ["c"]}, "chosen", "entry 0 should be text, but is 3"),
        ({"prompt": "a", "chosen": ["b", message("d")], "rejected": ["c"]}, "chosen", "entry 0 should be a list of m"),
        ({"prompt": "a", "chosen": [{"title": "b"}], "rejected": ["c"]}, "chosen", "expected text or a list of m"),
        (
            {"prompt": "a", "chosen": ["b", "d", "b"], "rejected": ["c"]},
            "chosen",
            "entry 2 equals entry 0, 'b'. Leave",
        ),
        (
            {"prompt": "a", "chosen": ["b", "b</s>"], "rejected": ["c"]},
            "chosen",
            "has the same tokens as entry 0, 'b'",
        ),
        ({"prompt": "a", "chosen": ["b", "d"], "rejected": ["c", "d"]}, "rejected", "entry 1 equals the chosen .*'d'"),
        ({"prompt": "a", "chosen": ["b", "d"], "rejected": ["d</s>"]}, "rejected", "same tokens as the chosen .* 'd'"),
        ({"prompt": None, "chosen": "b", "rejected": ["c"]}, "prompt", "expected text"),
        ({"prompt": message("a"), "chosen": "b", "rejected": ["c"]}, "prompt", "expected text"),
        ({"prompt": "a", "chosen": message("b"), "rejected": [message("c")]}, "prompt", "expected a list of messages"),
        ({"prompt": "a", "chosen": "b"}, "rejected", "there is no such column"),
        ({"prompt": "a", "rejected": ["c"]}, "chosen", "there is no such column"),
        ({"prompt": "a", "chosen": "b", "rejected1": None}, "rejected", "the list is empty"),
    ],
)
def test_bad_rows_are_named(tokenizer, row, column, problem):
    with pytest.raises(RowError, match=rf"Row 17 of the train dataset, column `{column}`: .*{problem}"):
        tokenize(tokenizer, row)
