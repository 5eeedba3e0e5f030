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
        # Not articles
        ("Paris, Texas", "Paris, Texas"),
        ("Kiss Me, Guido", "Kiss Me, Guido"),
        ("Cry, the Beloved Country", "Cry, the Beloved Country"),
        ("The, The", "The The"),
        ("", ""),
    ],
)
def test_article_goes_to_the_front(filed, natural):
    assert natural_title(filed) == natural
