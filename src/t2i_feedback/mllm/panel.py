"""Several models asked about the same images, each in its roles, for measurement: each model is opened once.

A role is what is asked: `judge` and `held_out` score the preference; `validator` is asked as the loop asks it;
`questions` is the validator item by item; `vqa` is VQAScore.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from t2i_feedback.mllm import roles, shared, wording
from t2i_feedback.mllm.base import Mllm, Typed
from t2i_feedback.mllm.ledger import Ledger
from t2i_feedback.mllm.section import Catalogue

CHUNK = 512  # images asked about together

Images = Callable[[slice], Sequence[Image.Image]]  # opens these of the images
Answers = dict[str, Sequence[Typed]]  # role -> one answer per image


def ask(
    asked: Mapping[str, str],
    catalogue: Catalogue,
    images: Images,
    captions: Sequence[str],
    *,
    ledger: Path,
    preference: str,
    questions: bool,
    max_invalid_fraction: float,
) -> Answers:
    """The answers of each role about every image and its caption. `asked`: role -> the model that plays it.

    With `questions` the validator is asked item by item. Raises UserError when too few answers of a role are valid.
    """
    answers: Answers = {}
    limit = ("evaluate.max_invalid_fraction", max_invalid_fraction)
    for name in dict.fromkeys(asked.values()):
        with shared.connect(name, catalogue[name], ledger, max_invalid=limit) as model:
            for role in (role for role, chosen in asked.items() if chosen == name):
                found: list[Typed] = []
                for start in range(0, len(captions), CHUNK):
                    chunk = slice(start, start + CHUNK)
                    found += _ask(role, model, images(chunk), captions[chunk], preference, questions)
                roles.check_invalid(found, max_invalid_fraction, f"{role.replace('_', '-')} {name}")
                answers[role] = found
    return answers


def _ask(
    role: str,
    model: Mllm,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    preference: str,
    questions: bool,
) -> Sequence[Typed]:
    if role in ("validator", "questions"):
        return roles.validate(model, images, captions, questions=questions or role == "questions")
    if role == "vqa":
        return roles.vqa_score(model, images, captions)
    return roles.score_preference(model, images, preference)


def invalid_shares(answers: Mapping[str, Sequence[Typed]]) -> dict[str, float]:
    """`invalid_ROLE` -> the share of its answers that are not valid."""
    return {
        f"invalid_{role}": sum(answer.status != "valid" for answer in found) / len(found)
        for role, found in answers.items()
    }


def card(asked: Mapping[str, str], catalogue: Catalogue, answers: Answers, ledger: Path) -> dict[str, object]:
    """For the protocol card: how answers were read, the version of the templates that asked for them, and what was not
    as the catalogue has it: a server's dialect, images that were made smaller."""
    read: dict[str, object] = {f"{role}_reading": roles.readings_used(answers[role]) for role in asked}
    for role, name in asked.items():
        entry = catalogue[name]
        found = Ledger(ledger).abilities(entry.asked_about(entry.access(name, Ledger(ledger)).identity))
        said = [found.dialect] if found and found.dialect else []
        said += [f"images of at most {entry.max_image_side} pixels"] if entry.max_image_side else []
        read |= {f"{role}_asked": ", ".join(said)} if said else {}
    versions = sorted({wording.version(catalogue[name].templates) for name in asked.values()})
    return {**read, "templates": ", ".join(versions)}
