"""Arguments that are lists of texts, checked where they come in."""


def check_texts(texts, what: str) -> None:
    """Raise TypeError for one text where a list of texts is expected: it would be taken letter by
    letter."""
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{what} is one text; expected a list of texts, such as [{texts[:20]!r}]")
