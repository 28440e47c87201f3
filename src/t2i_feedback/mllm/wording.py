"""The words that roles use: templates/SET/NAME.txt with {placeholders}. They may be changed; digests tell versions."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from t2i_feedback.foundation.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDERS = {  # template -> what its words must hold
    "enhance": {"prompt"},
    "enhance_again": {"prompt", "feedback"},
    "validate": {"caption"},
    "validate_with_reason": {"caption"},
    "feedback": {"caption"},
    "questions": {"caption"},
    "question": {"item"},
    "missing": {"items"},
    "judge": {"preference"},
}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@lru_cache
def template(folder: str, name: str) -> str:
    """The template's words. A folder SET/paraphrase-N holds other words for some; the rest are SET's.

    Raises UserError when the file is missing or its placeholders are not what they must be.
    """
    path = TEMPLATES / folder / f"{name}.txt"
    if not path.exists() and "/" in folder:
        return template(folder.partition("/")[0], name)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise UserError(f"the template {path} cannot be read ({type(error).__name__}): `git checkout` it") from None
    found, wanted = set(_PLACEHOLDER.findall(text)), PLACEHOLDERS[name]
    if missing := sorted(wanted - found):
        raise UserError(f"the template {path} lacks its placeholder {{{missing[0]}}}: without it the model sees none")
    if strange := sorted(found - wanted):
        known = ", ".join(f"{{{word}}}" for word in sorted(wanted)) or "none"
        raise UserError(f"the template {path} has a placeholder {{{strange[0]}}} that nobody fills; known: {known}")
    return text


def paraphrases(folder: str, name: str) -> list[str]:
    """The folders SET/paraphrase-N that hold a template in words of their own. Raises UserError as `template` does."""
    found = [f"{folder}/{path.parent.name}" for path in sorted((TEMPLATES / folder).glob(f"paraphrase-*/{name}.txt"))]
    for other in found:
        template(other, name)
    return found


def render(folder: str, name: str, **values: str) -> str:
    """A template with its {words} replaced in one pass: braces in a caption stay what they are."""
    return _PLACEHOLDER.sub(lambda match: " ".join(values[match[1]].split()), template(folder, name))


def digest(folder: str, name: str) -> str:
    """The version of a template: the beginning of its words' hash."""
    return hashlib.sha256(template(folder, name).encode()).hexdigest()[:12]


def version(folder: str) -> str:
    """The version of a set of templates: its name and a hash over all of them. Raises UserError as `template` does."""
    texts = [(name, template(folder, name)) for name in sorted(PLACEHOLDERS)]
    return f"{folder} {hashlib.sha256(repr(texts).encode()).hexdigest()[:12]}"
