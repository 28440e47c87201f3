"""What estimates/throughputs.yaml says of a card, and what it should say by what was measured on it."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

from t2i_feedback import params
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.estimate import costs, figures
from t2i_feedback.tools.estimate.counts import Asked
from t2i_feedback.tools.gpu_check import mllms
from t2i_feedback.tools.gpu_check.images import IMAGES, Bench
from t2i_feedback.tools.gpu_check.results import Attempt
from t2i_feedback.tools.reckoning.memory import RESERVED

PEAKS = {
    "texts": "texts",
    "rollout": "drawing",
    "decoding": "decoding",
    "update": "update",
}  # phase -> its reckoned one
STEPS = f"steps of one image per second, {IMAGES} at a time, decoding not included"


class Correction(NamedTuple):
    key: tuple[str, ...]
    value: float
    unit: str
    source: str

    @property
    def figure(self) -> dict[str, Any]:
        return {"value": float(f"{self.value:.3g}"), "unit": self.unit, "source": self.source}


def card_of(found: Attempt) -> tuple[str, float] | None:
    """Name and GB of the card that a part ran on."""
    memory = found.figure("card", "memory_gb")
    return None if memory is None else (str(found.phases["card"].figures["name"]), memory)


def key_of(card: str, memory: float) -> str:
    """What throughputs.yaml calls a card: the entry of its kind with the nearest memory, or its kind's own name."""
    words = re.sub(r"nvidia|geforce|tesla|quadro", "", card.lower()).replace("-", " ").split()
    kind = "".join(words[:2]) if words[0] in ("rtx", "gtx") else words[0]
    gpus = figures.read().gpus
    same = [key for key in gpus if key == kind or key.startswith(f"{kind}-")]
    return min(same, key=lambda key: abs(gpus[key].memory.value - memory), default=kind)


def estimated(found: Attempt) -> float | None:
    """What `make estimate` has for the part's card: steps of one image, or questions, per second; None: nothing."""
    card = card_of(found)
    if card is None:
        return None
    read, gpu = figures.read(), key_of(*card)
    try:
        if found.task == "llava":
            asked = Asked("validator", mllms.ENTRY, "question", 1)
            return 1 / costs.seconds_of_answers(asked, params.load(), read, gpu)
        p = Bench(*found.task.split(), "cuda").published.p
        return 1 / costs.seconds_of_step(p, read, gpu, p.model.guidance)
    except (UserError, KeyError, TypeError):
        return None


def corrections(found: Mapping[str, Attempt]) -> list[Correction]:
    """Of every model that ran in its profile's precision: steps, update and memory. Of LLaVA: questions and texts."""
    lines: list[Correction] = []
    for attempt in found.values():
        card = card_of(attempt)
        if card is None or attempt.task == "nccl":
            continue
        gpu, source = key_of(*card), f"measured: make gpu-check; {card[0]}"
        if attempt.task == "llava":
            keys = {"questions": "questions_per_second", "texts": "texts_per_second"}
            units = {"questions": "questions per second", "texts": f"texts of {mllms.WRITTEN} tokens per second"}
            for kind, name in keys.items():
                if (value := attempt.figure(kind, name)) is not None:
                    lines.append(Correction(("mllms", mllms.ENTRY, kind, gpu), value, units[kind], source))
        elif (bench := Bench(*attempt.task.split(), "cuda")).is_profiles:
            lines += _of_model(attempt, bench, gpu, source)
    return lines


def _of_model(attempt: Attempt, bench: Bench, gpu: str, source: str) -> list[Correction]:
    p, lines = bench.published.p, []
    key = ("image_models", p.model.name)
    if (steps := attempt.figure("rollout", "steps_per_second")) is not None:
        scaled = steps * p.model.pixels / figures.image_model(figures.read(), p.model.name).size.value ** 2
        lines.append(Correction((*key, "steps", gpu), scaled, STEPS, source))
    if (forwards := attempt.figure("update", "forwards_per_transition")) is not None:
        alone = forwards - p.finetune.gradient_checkpointing - (p.finetune.kl_weight > 0)  # `make estimate` adds them
        lines.append(Correction((*key, "update"), alone, "forwards per trained transition", source))
    ratios = [ratio for phase in PEAKS if (ratio := beyond_reckoned(attempt, phase)) is not None]
    if ratios and (peak := attempt.figure("profile", "reckoned_gb")) is not None:
        how = f"; the reckoned peak of the profile, times {max(ratios):.3f} as measured, and {RESERVED:g} GB for CUDA"
        lines.append(Correction((*key, "memory"), peak * max(ratios) + RESERVED, "GB", source + how))
    return lines


def beyond_reckoned(attempt: Attempt, phase: str) -> float | None:
    """A phase's measured peak over the reckoned one."""
    measured, reckoned = attempt.figure(phase, "peak_gb"), reckoned_of(attempt, phase)
    return measured / reckoned if measured is not None and reckoned else None


def reckoned_of(attempt: Attempt, phase: str) -> float | None:
    if phase == "rollout":  # it draws, and then decodes
        both = [attempt.figure("reckoned", name) for name in ("drawing", "decoding")]
        return max((one for one in both if one is not None), default=None)
    return attempt.figure("reckoned", PEAKS.get(phase, "")) or attempt.figure(phase, "reckoned_gb")


def as_yaml(lines: Sequence[Correction]) -> str:
    """To be pasted: each figure below the keys that it has."""
    import yaml

    tree: dict[str, Any] = {}
    for line in lines:
        _put(tree, line.key, line.figure)
    return yaml.safe_dump(tree, sort_keys=False, width=10_000, allow_unicode=True, default_flow_style=None)


def written(lines: Sequence[Correction]) -> str:
    """The text of throughputs.yaml with these figures, its comments kept. Raises UserError if it would not be valid."""
    from ruamel.yaml import YAML, CommentedMap

    yaml = YAML()
    yaml.width = 10_000
    yaml.preserve_quotes = True
    content = yaml.load(figures.FIGURES)
    for line in lines:
        figure = CommentedMap(line.figure)
        figure.fa.set_flow_style()
        _put(content, line.key, figure)
    text = StringIO()
    yaml.dump(content, text)
    figures.Throughputs.model_validate(YAML(typ="safe").load(text.getvalue()))
    return text.getvalue()


def _put(tree: Any, key: Sequence[str], value: Any) -> None:
    *sections, last = key
    for name in sections:
        tree = tree.setdefault(name, type(tree)())
    tree[last] = value
