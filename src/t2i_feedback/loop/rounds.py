"""Stage 1 of the paper: enhance, draw, validate, and round again until the image is accepted.

The loop knows neither models nor files: what draws, validates, explains and enhances is passed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from t2i_feedback.foundation.rows import CaptionRow, ImageRow, PromptRow, Reading, Status


class Verdict(Protocol):
    """What a validator said of one image: `p_yes` is None unless `status` is valid."""

    @property
    def status(self) -> Status: ...

    @property
    def p_yes(self) -> float | None: ...

    @property
    def reading(self) -> Reading: ...

    @property
    def feedback(self) -> str | None:
        """What the image misses of its caption; None when the validator did not say."""
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


def with_verdicts(images: Sequence[ImageRow], verdicts: Sequence[Verdict], threshold: float) -> list[ImageRow]:
    """The rows with their verdicts. A verdict that is not valid neither accepts nor rejects."""
    return [
        image.model_copy(
            update={
                "status": verdict.status,
                "p_yes": verdict.p_yes,
                "reading": verdict.reading,
                "accepted": None if verdict.p_yes is None else verdict.p_yes >= threshold,
            }
        )
        for image, verdict in zip(images, verdicts, strict=True)
    ]


def run_rounds(
    captions: Captions,
    first: list[PromptRow],
    roles: Roles,
    *,
    max_rounds: int,
    threshold: float,
    feedback: bool,
    on_round: Callable[[list[ImageRow]], None] = lambda rows: None,
) -> list[ImageRow]:
    """Every image of every round, in order of rounds. `first` are the prompts of round 1, one per caption.

    A caption leaves the loop when its image is accepted, or when its verdict stays masked (kept as unjudged). With
    `feedback`, the enhancer of the next round is told what the image missed, by its verdict or, where that did not
    say, by an explanation; without, the prompt stays and the noise changes. `on_round` is given each round's images
    once they are judged.
    """
    open_captions, prompts = list(captions), list(first)
    history: list[ImageRow] = []
    for number in range(1, max_rounds + 1):
        names = roles.draw(prompts)
        drawn = [
            ImageRow(
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
        rejected = [i for i, image in enumerate(judged) if image.accepted is False]
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
        on_round(judged)
        if last or not rejected:
            break
        open_captions = [open_captions[i] for i in rejected]
        if feedback:
            prompts = roles.enhance(open_captions, [judged[i].feedback for i in rejected], number + 1)
        else:
            prompts = [prompts[i].model_copy(update={"round": number + 1}) for i in rejected]
    return history


def keep(images: Sequence[ImageRow]) -> ImageRow:
    """The image that stands for a caption: an accepted one, else the unjudged last, else the highest P(yes)."""
    accepted = [image for image in images if image.accepted]
    if accepted:
        return max(accepted, key=lambda image: image.p_yes or 0.0)
    if images[-1].accepted is None:
        return images[-1]
    return best(images)


def best(images: Sequence[ImageRow]) -> ImageRow:
    """The image with the highest P(yes); one without a verdict stands behind any that has one."""
    return max(images, key=lambda image: -1.0 if image.p_yes is None else image.p_yes)


def by_caption(images: Sequence[ImageRow]) -> dict[int, list[ImageRow]]:
    grouped: dict[int, list[ImageRow]] = {}
    for image in images:
        grouped.setdefault(image.caption_id, []).append(image)
    return grouped
