"""What estimates/throughputs.yaml says of a card, and what it should say by what a part measured on it."""

import re
from collections.abc import Iterator

from t2i_feedback import params
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.estimate import costs, figures
from t2i_feedback.tools.estimate.counts import Asked
from t2i_feedback.tools.gpu_check import mllms
from t2i_feedback.tools.gpu_check.images import IMAGES, Bench
from t2i_feedback.tools.gpu_check.results import Attempt, Correction
from t2i_feedback.tools.reckoning.memory import RESERVED


def key_of(card: str, memory: float) -> str:
    """What throughputs.yaml calls a card: the entry of its kind with the nearest memory, or its kind's own name."""
    words = re.sub(r"nvidia|geforce|tesla", "", card.lower()).replace("-", " ").split()
    kind = "".join(words[:2]) if words[0] == "rtx" else words[0]
    gpus = figures.read().gpus
    same = [key for key in gpus if key == kind or key.startswith(f"{kind}-")]
    return min(same, key=lambda key: abs(gpus[key].memory.value - memory), default=kind)


def estimated(task: str, gpu: str) -> float | None:
    """What `make estimate` goes by: steps of one image, or questions, per second; None: nothing is known."""
    read = figures.read()
    try:
        if task == "llava":
            return 1 / costs.seconds_of_answers(
                Asked("validator", mllms.ENTRY, "question", 1), params.load(), read, gpu
            )
        p = Bench.of(task, "cuda").published.p
        return 1 / costs.seconds_of_step(p, read, gpu, p.model.guidance)
    except (UserError, KeyError):  # no figure, no card
        return None


def corrections(attempt: Attempt, gpu: str, card: str) -> Iterator[Correction]:
    """Of a model in its profile's precision: steps, update and memory. Of LLaVA: questions and texts."""
    source = f"measured: make gpu-check; {card}"
    if attempt.task == "llava":
        units = {"questions": "questions per second", "texts": f"texts of {mllms.WRITTEN} tokens per second"}
        for kind, unit in units.items():
            if (value := attempt.figure(kind, f"{kind}_per_second")) is not None:
                yield Correction(key=("mllms", mllms.ENTRY, kind, gpu), value=value, unit=unit, source=source)
        return
    bench = Bench.of(attempt.task, "cuda")
    p, known_models = bench.published.p, figures.read().image_models
    key = ("image_models", p.model.name)
    if not bench.is_profiles or p.model.name not in known_models:
        return
    if (steps := attempt.figure("rollout", "steps_per_second")) is not None:
        steps *= p.model.pixels / known_models[p.model.name].size.value ** 2
        unit = f"steps of one image per second, {IMAGES} at a time, decoding not included"
        yield Correction(key=(*key, "steps", gpu), value=steps, unit=unit, source=source)
    if (forwards := attempt.figure("update", "forwards_per_transition")) is not None:
        forwards -= p.finetune.gradient_checkpointing + (p.finetune.kl_weight > 0)  # which `make estimate` adds
        yield Correction(key=(*key, "update"), value=forwards, unit="forwards per trained transition", source=source)
    ratios = [peak / known for phase, peak in attempt.peaks.items() if (known := attempt.reckoned(phase))]
    if ratios and (profile := attempt.figure("profile", "reckoned_gb")) is not None:
        how = f"; the reckoned peak of the profile times {max(ratios):.3f}, and {RESERVED:g} GB for CUDA"
        yield Correction(key=(*key, "memory"), value=profile * max(ratios) + RESERVED, unit="GB", source=source + how)
