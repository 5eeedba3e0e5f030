import pytest

from dmpo_trl.data import natural_title


@pytest.mark.parametrize(
    ("filed", "natural"),
    [
        ("Bug's Life, A", "A Bug's Life"),
        ("Usual Suspects, The (1995)", "The Usual Suspects (1995)"),
        ("Postman, The (Postino, Il)", "The Postman (Il Postino)"),
        ("Misérables, Les", "Les Misérables"),
        ("Enfer, L'", "L'Enfer"),
        ("Cook the Thief His Wife & Her Lover, The", "The Cook the Thief His Wife & Her Lover"),
        ("Adventures of Priscilla, Queen of the Desert, The", "The Adventures of Priscilla, Queen of the Desert"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        (
            "Vitelloni, I (a.k.a. The Young and the Passionate) (1953)",
            "I Vitelloni (a.k.a. The Young and the Passionate) (1953)",
        ),
        ("Macbeth (a.k.a. Tragedy of Macbeth, The) (1971)", "Macbeth (a.k.a. The Tragedy of Macbeth) (1971)"),
        ("Night Watch (aka Hole, The)", "Night Watch (aka The Hole)"),
        ("Trou, Le (Hole, The) (Night Watch, The) (1960)", "Le Trou (The Hole) (The Night Watch) (1960)"),
        ("Special Day, A (Giornata particolare, Una) (1977)", "A Special Day (Una Giornata particolare) (1977)"),
        ("Blind Side, The  (2009)", "The Blind Side  (2009)"),  # as GroupLens published it; the reader does the rest
        # Not articles
        (
            "Strike! (a.k.a. All I Wanna Do, The Hairy Bird) (1998)",
            "Strike! (a.k.a. All I Wanna Do, The Hairy Bird) (1998)",
        ),
        ("Lust, Caution (Se, jie) (2007)", "Lust, Caution (Se, jie) (2007)"),
        ("I Love You, Man (2009)", "I Love You, Man (2009)"),
        ("Paris, Texas", "Paris, Texas"),
        ("Kiss Me, Guido", "Kiss Me, Guido"),
        ("Cry, the Beloved Country", "Cry, the Beloved Country"),
        ("The, The", "The The"),
        ("", ""),
    ],
)
def test_article_goes_to_the_front(filed, natural):
    assert natural_title(filed) == natural
