"""The one exception whose text is meant for the user: a stage prints it as a single line and exits with status 1."""


class UserError(Exception):
    """Something the user can mend. The message names the key, file or command and the way out."""


def first_line(error: BaseException) -> str:
    """Of a library's message, which may be long; the exception's class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
