"""Stage 1 of the paper: enhance, draw, validate, and round again until the picture is accepted.

The loop knows neither models nor files: what draws, validates, explains and enhances is passed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from t2i_feedback.foundation.rows import CaptionRow, PictureRow, PromptRow, Reading, Status


class Verdict(Protocol):
    """What a validator said of one picture: `p_yes` is None unless `status` is valid."""

    @property
    def status(self) -> Status: ...

    @property
    def p_yes(self) -> float | None: ...

    @property
    def reading(self) -> Reading: ...

    @property
    def feedback(self) -> str | None:
        """What the picture misses of its caption; None when the validator did not say."""
        ...


Captions = Sequence[CaptionRow]
Draw = Callable[[list[PromptRow]], list[str]]  # -> image names, relative to the arm's folder
Validate = Callable[[Captions, list[str], int], Sequence[Verdict]]  # captions, image names, attempt (0, then 1)
Explain = Callable[[Captions, list[str]], list[str | None]]  # -> feedback, None where no valid answer came
Enhance = Callable[[Captions, list[str | None], int], list[PromptRow]]  # captions, feedback, round -> prompts


@dataclass(frozen=True)
class Roles:
    """What the loop calls. The validator always judges by the original caption."""

    draw: Draw
    validate: Validate
    explain: Explain
    enhance: Enhance


def verdicts_on(captions: Captions, images: list[str], validate: Validate) -> list[Verdict]:
    """A verdict on every image, by name. One that is not valid is asked for once more, and is then what it is."""
    verdicts = list(validate(captions, images, 0))
    masked = [i for i, verdict in enumerate(verdicts) if verdict.status != "valid"]
    if masked:
        again = validate([captions[i] for i in masked], [images[i] for i in masked], 1)
        for i, verdict in zip(masked, again, strict=True):
            verdicts[i] = verdict
    return verdicts


def with_verdicts(pictures: Sequence[PictureRow], verdicts: Sequence[Verdict], threshold: float) -> list[PictureRow]:
    """The rows with their verdicts. A verdict that is not valid neither accepts nor rejects."""
    return [
        picture.model_copy(
            update={
                "status": verdict.status,
                "p_yes": verdict.p_yes,
                "reading": verdict.reading,
                "accepted": None if verdict.p_yes is None else verdict.p_yes >= threshold,
            }
        )
        for picture, verdict in zip(pictures, verdicts, strict=True)
    ]


def run_rounds(
    captions: Captions, first: list[PromptRow], roles: Roles, *, max_rounds: int, threshold: float, feedback: bool
) -> list[PictureRow]:
    """Every picture of every round, in order of rounds. `first` are the prompts of round 1, one per caption.

    A caption leaves the loop when its picture is accepted, or when its verdict stays masked (kept as unjudged). With
    `feedback`, the enhancer of the next round is told what the picture missed, by its verdict or, where that did not
    say, by an explanation; without, the prompt stays and the noise changes.
    """
    open_captions, prompts = list(captions), list(first)
    history: list[PictureRow] = []
    for number in range(1, max_rounds + 1):
        names = roles.draw(prompts)
        drawn = [
            PictureRow(
                caption_id=prompt.caption_id,
                round=number,
                prompt=prompt.prompt,
                image=name,
                tokens_lost=prompt.tokens_lost,
            )
            for prompt, name in zip(prompts, names, strict=True)
        ]
        verdicts = verdicts_on(open_captions, names, roles.validate)
        judged = with_verdicts(drawn, verdicts, threshold)
        rejected = [i for i, picture in enumerate(judged) if picture.accepted is False]
        last = number == max_rounds
        if feedback and rejected and not last:
            missed = {i: verdicts[i].feedback for i in rejected}
            silent = [i for i in rejected if not missed[i]]
            if silent:
                said = roles.explain([open_captions[i] for i in silent], [judged[i].image for i in silent])
                missed |= dict(zip(silent, said, strict=True))
            for i in rejected:
                judged[i] = judged[i].model_copy(update={"feedback": missed[i]})
        history += judged
        if last or not rejected:
            break
        open_captions = [open_captions[i] for i in rejected]
        if feedback:
            prompts = roles.enhance(open_captions, [judged[i].feedback for i in rejected], number + 1)
        else:
            prompts = [prompts[i].model_copy(update={"round": number + 1}) for i in rejected]
    return history


def keep(pictures: Sequence[PictureRow]) -> PictureRow:
    """The picture that stands for a caption: an accepted one, else the unjudged last, else the highest P(yes)."""
    accepted = [picture for picture in pictures if picture.accepted]
    if accepted:
        return max(accepted, key=lambda picture: picture.p_yes or 0.0)
    if pictures[-1].accepted is None:
        return pictures[-1]
    return best(pictures)


def best(pictures: Sequence[PictureRow]) -> PictureRow:
    """The picture with the highest P(yes); one without a verdict stands behind any that has one."""
    return max(pictures, key=lambda picture: -1.0 if picture.p_yes is None else picture.p_yes)


def by_caption(pictures: Sequence[PictureRow]) -> dict[int, list[PictureRow]]:
    grouped: dict[int, list[PictureRow]] = {}
    for picture in pictures:
        grouped.setdefault(picture.caption_id, []).append(picture)
    return grouped
