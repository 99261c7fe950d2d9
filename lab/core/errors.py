"""What an error says, in one line."""


def first_line(error: BaseException) -> str:
    """The first line of an error's own words, the name of its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
