"""An enhancer at work in a run: captions in, rows of prompts out, and the run stops when too few answers are valid."""

from collections.abc import Callable, Sequence

from t2i_feedback.foundation.rows import CaptionRow, PromptRow
from t2i_feedback.foundation.seeds import noise_seed
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm, Outcome

SEEDS = 2**31  # of a server

CountLost = Callable[[Sequence[str]], list[int]]  # prompts -> tokens of each beyond the image model's window


class Enhancer:
    """Rewrites captions. `first` are prompts that the run has already, which count among its answers.

    `temperature` 0 writes what is likeliest; above it prompts are drawn, each by the run's `seed`, caption and round.
    """

    def __init__(
        self,
        mllm: Mllm,
        count_lost: CountLost,
        max_invalid_fraction: float,
        first: Sequence[PromptRow] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ):
        self.mllm, self.count_lost, self.max_invalid_fraction = mllm, count_lost, max_invalid_fraction
        self.temperature, self.seed = temperature, seed
        self.prompts = list(first)  # of the run

    def first_prompts(self, captions: Sequence[CaptionRow]) -> list[PromptRow]:
        """The prompts of round 1."""
        return self.enhance(captions, None, 1)

    def enhance(
        self, captions: Sequence[CaptionRow], feedback: Sequence[str | None] | None, round: int
    ) -> list[PromptRow]:
        """One prompt per caption. Without a valid answer it is the caption itself, and the row says so.

        Raises UserError when too many of the run's answers are not valid: the few prompts of a late round do not stop
        it by themselves.
        """
        drawn = [noise_seed(self.seed, "enhance", row.caption_id, round) % SEEDS for row in captions]
        seeds = drawn if self.temperature else None
        outcomes = roles.enhance(self.mllm, [row.caption for row in captions], feedback, self.temperature, seeds)
        before = [Outcome(row.status, row.prompt, row.prompt) for row in self.prompts]
        roles.check_invalid([*before, *outcomes], self.max_invalid_fraction, "enhanced prompts")
        texts = [outcome.value or row.caption for outcome, row in zip(outcomes, captions, strict=True)]
        lost = self.count_lost(texts)
        rows = [
            PromptRow(caption_id=row.caption_id, round=round, prompt=text, status=outcome.status, tokens_lost=count)
            for row, text, outcome, count in zip(captions, texts, outcomes, lost, strict=True)
        ]
        self.prompts += rows
        return rows
