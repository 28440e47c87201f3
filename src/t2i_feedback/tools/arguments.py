"""The arguments of a tool: a wrong one is one line that names the variable of make, not argparse's usage."""

import argparse
import re
from typing import NoReturn

from t2i_feedback.foundation.errors import UserError


class Arguments(argparse.ArgumentParser):
    """`--help` shows the text. An option that make passes has the name of its variable: ROUNDS is --rounds."""

    def __init__(self, text: str) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raises UserError: `argument --rounds: zero is ...` is told as `ROUNDS: zero is ...`."""
        told = re.sub(r"^argument (?:--)?([\w-]+): ", lambda found: f"{found[1].upper()}: ", message)
        raise UserError(f"{told} (`make help` has the variables, --help the arguments)")


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)
