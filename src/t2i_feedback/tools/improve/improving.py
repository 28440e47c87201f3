"""Stage 1 for prompts that somebody typed: the same loop, ledger and noise as the validated arm."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from t2i_feedback import needs
from t2i_feedback.foundation import checkpoints, files, params, paths
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, write_rows
from t2i_feedback.loop import rounds
from t2i_feedback.params import Params
from t2i_feedback.tools.improve import vocabulary


class Improver:
    """Improves prompts, into a folder that is named by the prompts and by all that their images depend on.

    Raises UserError when the adapter's folder holds none, the MLLM sees no images, or a model cannot be had.
    """

    def __init__(self, p: Params, texts: Sequence[str], adapter: Path | None):
        if adapter and not (adapter / ADAPTER_WEIGHTS).is_file():
            raise UserError(f"ADAPTER: {adapter} holds no {ADAPTER_WEIGHTS}; `dvc repro finetune` makes models/lora")
        if not p.mllms[p.stage1.mllm].images:
            raise UserError(f"MLLM: mllms.{p.stage1.mllm} reads text alone (images: false) and can validate no image")
        what, remedy = needs.unreachable(p, "model.", f"mllms.{p.stage1.mllm}.")
        if what:
            raise UserError(f"{what}; {remedy}")
        self.p, self.adapter, self.warning = p, adapter, vocabulary.beyond(texts, p)
        self.captions = [CaptionRow(caption_id=prompt_id(t), image_id=0, caption=t, image="") for t in texts]
        self.folder = paths.IMPROVED / self._name()

    def caption(self, row: ImageRow) -> str:
        """The typed prompt that an image was drawn for."""
        return next(one.caption for one in self.captions if one.caption_id == row.caption_id)

    def run(self, on_round: Callable[[list[ImageRow]], None] = lambda rows: None) -> list[ImageRow]:
        """Every image of every round, which `on_round` is given round by round; rows and images are in the folder.

        An answer that is not valid stops nothing: its row says what it was.
        """
        from t2i_feedback.image_models.base import tokens_lost
        from t2i_feedback.image_models.drawing import flagged
        from t2i_feedback.image_models.loading import load_tokenizer
        from t2i_feedback.image_models.round_drawing import RoundDrawer
        from t2i_feedback.mllm import shared
        from t2i_feedback.mllm.enhancing import Enhancer
        from t2i_feedback.mllm.validating import Validator

        stage1, tokenizer = self.p.stage1, load_tokenizer(self.p.model)
        with (
            files.locked(
                paths.cache() / "locks" / f"improve-{self.folder.name}.lock", "another run improves these: waiting"
            ),
            shared.connect(stage1.mllm, self.p.mllms[stage1.mllm], paths.ledger()) as model,
        ):
            drawer = RoundDrawer(self.p.model, self.adapter, self.folder, self.p.seed)
            validator = Validator(model, self.folder, questions=stage1.questions, max_invalid_fraction=1.0)
            enhancer = Enhancer(
                model,
                lambda texts: tokens_lost(tokenizer, texts),
                1.0,
                temperature=stage1.temperature,
                seed=self.p.seed,
            )
            images = rounds.run_rounds(
                self.captions,
                enhancer.first_prompts(self.captions),
                rounds.Roles(drawer.draw, validator.validate, validator.explain, enhancer.enhance),
                max_rounds=stage1.max_rounds,
                threshold=stage1.threshold,
                feedback=stage1.feedback,
                on_round=on_round,
            )
            images = flagged(self.folder, images)
            write_rows(self.folder / "rounds.jsonl", images)
            write_rows(self.folder / "captions.jsonl", self.captions)
        return images

    def _name(self) -> str:
        first = self.captions[0].caption.lower()
        words = "-".join(re.findall(r"\w+", first)[:5])[:40] or "prompt"
        decisive = params.decisive(self.p)
        described = {
            "prompts": sorted(row.caption for row in self.captions),
            "parameters": {key: decisive[key] for key in decisive if key.split(".")[0] in ("seed", "model", "stage1")},
            "mllm": {key: decisive[key] for key in decisive if key.startswith(f"mllms.{self.p.stage1.mllm}.")},
            "checkpoints": checkpoints.digests(self.p, "model.name", "stage1.mllm"),
            "adapter": files.digest(self.adapter / ADAPTER_WEIGHTS) if self.adapter else None,
        }
        return f"{words}-{files.text_digest(json.dumps(described, sort_keys=True, default=str))[:8]}"


def prompt_id(text: str) -> int:
    """A caption id that depends on the text alone, so that a prompt's noise is the same in any company."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
