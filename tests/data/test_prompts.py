import json

import pytest

from dmpo_trl.data import MOVIES, PromptTemplate
from dmpo_trl.data.prompts import TEMPLATES

TEMPLATE = PromptTemplate(system="You recommend.", instruction="Liked:", question="Next?", separator="; ")


def test_the_words_for_movies():
    """The figures of benchmarks/results/learning were measured with exactly these."""
    question = "Which film will a viewer like next, after these?"
    assert MOVIES.prompt(["Alien", "Babe"]) == [
        {"role": "system", "content": "You recommend films."},
        {"role": "user", "content": f"{question}\nAlien\nBabe"},
    ]
    assert MOVIES.plain().prompt(["Alien"]) == f"You recommend films.\n{question}\nAlien\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_but_markers_follows_the_history_of_a_built_in_template(name):
    assert TEMPLATES[name].around()[-1] == ""
    assert TEMPLATES[name].instruction.endswith("?")


def test_the_candidates_stand_between_history_and_question():
    template = TEMPLATE.with_candidates("One of:")
    text = "Liked:\nAlien; Babe\nOne of:\nCasino; Diva\nNext?"
    assert template.prompt(["Alien", "Babe"], ["Casino", "Diva"]) == [
        {"role": "system", "content": "You recommend."},
        {"role": "user", "content": text},
    ]
    assert template.plain().prompt(["Alien", "Babe"], ["Casino", "Diva"]) == f"You recommend.\n{text}\n"


def test_candidates_are_given_exactly_where_the_template_lists_them():
    with pytest.raises(ValueError, match=r"lists candidates, but .* candidates=None"):
        TEMPLATE.with_candidates().prompt(["Alien"])
    with pytest.raises(ValueError, match=r"lists no candidates, but .* candidates=\['Babe'\]"):
        TEMPLATE.prompt(["Alien"], ["Babe"])


@pytest.mark.parametrize("template", [*TEMPLATES.values(), TEMPLATE.plain(), TEMPLATE.with_candidates()])
def test_every_template_survives_json_and_puts_the_shared_words_first(template):
    assert PromptTemplate.from_dict(json.loads(json.dumps(template.to_dict()))) == template
    one = template.plain().prompt(["Alien"], ["x"] if template.candidates else None)
    other = template.plain().prompt(["Babe"], ["x"] if template.candidates else None)
    shared = f"{template.system}\n{template.instruction}\n"
    assert one.startswith(shared + "Alien")
    assert other.startswith(shared + "Babe")


def test_fields_left_out_have_their_defaults():
    assert PromptTemplate.from_dict({"instruction": "a", "question": "b"}) == PromptTemplate("a", "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Question": "Next?"}, r"has no \['Question'\]; its fields are"),
        ({"question": None}, "question of a prompt template must be str, it is None"),
        ({"conversational": "no"}, "conversational of a prompt template must be bool, it is 'no'"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate.from_dict(TEMPLATE.to_dict() | change)
    with pytest.raises(ValueError, match=r"lacks \['instruction', 'question'\]"):
        PromptTemplate.from_dict({})


def test_without_a_question_the_history_ends_the_prompt():
    template = PromptTemplate("Which film next, after these?", "")
    assert template.prompt(["Alien", "Babe"])[-1]["content"] == "Which film next, after these?\nAlien\nBabe"
    assert template.plain().prompt(["Alien", "Babe"]) == "Which film next, after these?\nAlien\nBabe\n"
