"""The model card's generated parts: tables with must, aim and what was reached, and figures that no longer hold."""

import re

MOVING = "pictures per second"  # a figure that another machine does not repeat
TUNED = "fine-tuned"  # figures of a fine-tuned model
BLANK = "–"


def flatten(figures: dict, prefix: str = "") -> dict[str, float | None]:
    """Nested figures as `a / b / c`: value."""
    flat: dict[str, float | None] = {}
    for name, value in figures.items():
        flat |= flatten(value, f"{prefix}{name} / ") if isinstance(value, dict) else {prefix + name: value}
    return flat


def moved(old: dict, new: dict, tolerance: float, tuned: bool) -> list[str]:
    """Committed figures that are gone or differ by more than the tolerance (of 1, or of the figure if it is larger).

    Those of a fine-tuned model count only if one was measured (`tuned`).
    """
    problems, now = [], flatten(new)
    for name, before in flatten(old).items():
        after = now.get(name)
        if MOVING in name or before is None or (TUNED in name and not tuned):
            continue
        if after is None or not abs(after - before) <= tolerance * max(1.0, abs(before)):
            problems.append(f"{name}: {before} is committed, {after} was measured")
    return problems


def reached(value: float | None, must: float | None, most: bool) -> str:
    """A table's cell, bold where a must is not reached."""
    if value is None:
        return BLANK
    missed = must is not None and (value > must if most else value < must)
    return f"**{value:.3f}**" if missed else f"{value:.3f}"


def table(figures: dict, columns: dict[str, str], rows: list[list]) -> str:
    """Markdown: measure, must, aim and one column of figures for each prefix in `columns`.

    A row is [words, path of the figure below the prefix, must, aim]; a must like "<=0.5" means at most.
    """
    flat = flatten(figures)
    lines = ["| measure | must | aim | " + " | ".join(columns) + " |", "|---|---|---|" + "---|" * len(columns)]
    for words, path, *bounds in rows:
        must, aim = [*bounds, None, None][:2]
        most = isinstance(must, str)
        limit = float(must.removeprefix("<=")) if isinstance(must, str) else must
        cells = [reached(flat.get(f"{prefix} / {path}"), limit, most) for prefix in columns.values()]
        wanted = [BLANK if bound is None else str(bound).replace("<=", "≤ ") for bound in (must, aim)]
        lines.append(f"| {words} | {' | '.join([*wanted, *cells])} |")
    return "\n".join(lines)


IMAGE_ROWS: list[list] = [
    ["background", "background", 0.95, 0.99],
    ["kind", "kind", 0.85, 0.95],
    ["colour", "colour", 0.75, 0.9],
    ["position given kind (detailed captions)", "column given kind", 0.6, 0.85],
    ["size given kind (detailed captions)", "size given kind"],
    ["whole picture right, detailed captions", "whole, detailed", 0.25, 0.5],
    ["whole picture right, medium captions", "whole, medium"],
    ["whole picture right, terse captions", "whole, terse", 0.55, 0.8],
    ["... if uninvited things did not count", "facts right, ignoring the uninvited, terse"],
    ["uninvited things per picture, detailed captions", "uninvited, detailed", "<=0.5", "<=0.1"],
    ["uninvited things per picture, terse captions", "uninvited, terse"],
]
READING_ROWS: list[list] = [[name, name] for name in ("background", "kind", "colour", "size", "whole")]
MLLM_ROWS: list[list] = [
    ["validator, balanced accuracy on renders", "validator / renders / balanced_accuracy", 0.85, 0.95],
    *(
        [f"... {name}", f"validator / renders / by_attribute / {name}", *bounds]
        for name, *bounds in (
            ("kind", 0.7, 0.9),
            ("colour", 0.7, 0.9),
            ("column", 0.7, 0.9),
            ("size", 0.7, 0.9),
            ("background", 0.7, 0.9),
            ("uninvited",),
            ("missing",),
        )
    ),
    ["... left and right exchanged", "validator / left or right / balanced_accuracy"],
    *(
        [f"... {level} captions", f"validator / renders / by_level / {level}"]
        for level in ("terse", "medium", "detailed")
    ),
    ["... area under the ROC curve", "validator / renders / auc"],
    ["... calibration error of P(yes)", "validator / renders / calibration_error"],
    ["validator on restyled renders", "validator / restyled / balanced_accuracy"],
    ["validator on drawn pictures", "validator / drawn / balanced_accuracy", 0.75, 0.9],
    *(
        [f"... {name}", f"validator / drawn / by_attribute / {name}"]
        for name in ("kind", "colour", "column", "size", "background")
    ),
    ["... the captions that they were drawn for", "validator / drawn / by_level / asked"],
    ["... calibration error of P(yes)", "validator / drawn / calibration_error"],
    ["validator on pictures of the half fine-tuned model", "validator / fine-tuned 0.5 / balanced_accuracy"],
    ["validator on pictures of the fine-tuned model", "validator / fine-tuned 1 / balanced_accuracy"],
    ["best threshold of P(yes), on training scenes", "threshold on training scenes / threshold"],
    ["preference of the paper, r", "preference / restyled / paper / r", 0.85, 0.95],
    *(
        [f"... {name} alone, r", f"preference / restyled / {name} / r", 0.6, 0.9]
        for name in ("dark", "muted", "blurred")
    ),
    *([f"... {name} alone, r", f"preference / restyled / {name} / r"] for name in ("bright", "vivid", "sharp")),
    ["... on drawn pictures, r", "preference / drawn / r"],
    ["... on pictures of the half fine-tuned model, r", "preference / fine-tuned 0.5 / r"],
    ["... on pictures of the fine-tuned model, r", "preference / fine-tuned 1 / r"],
    ["sweep darker: neighbours ranked rightly", "sweeps ranked rightly / darker"],
    ["sweep less saturated: neighbours ranked rightly", "sweeps ranked rightly / less_saturated"],
    ["sweep more blurred: neighbours ranked rightly", "sweeps ranked rightly / more_blurred"],
    ["verdicts the same in another batch", "steadiness / verdicts the same in another batch"],
    ["verdicts the same in other words", "steadiness / verdicts the same in other words 1"],
    ["... in yet other words", "steadiness / verdicts the same in other words 2"],
    ["scores in other words, r", "steadiness / r of scores in other words 1"],
    ["... in yet other words, r", "steadiness / r of scores in other words 2"],
    ["feedback on a false caption: a true complaint", "feedback / complaint right"],
    ["feedback on a true caption: nothing", "feedback / nothing wrong with a true caption"],
    ["enhancement: every stated attribute kept", "enhancement / attributes_kept", 0.95, 1.0],
    ["... in the grammar", "enhancement / in_grammar", 0.95, 1.0],
    ["... one sentence", "enhancement / one_sentence", 0.95, 1.0],
    ["... no thing added", "enhancement / no_thing_added"],
    ["... no place added", "enhancement / no_place_added"],
    ["... with feedback: attributes kept", "enhancement / again_attributes_kept"],
    ["... with feedback: the complaint answered", "enhancement / again_repaired"],
    ["question by question: items of a caption listed rightly", "question by question / lists right"],
    [
        "... balanced accuracy, uninvited things apart",
        "question by question / balanced_accuracy, uninvited things apart",
    ],
    ["pictures judged in a second, processor included", MOVING, 100, 300],
]


def tables(quality: dict) -> dict[str, str]:
    """The card's generated parts by name."""
    image, gain = quality["image"], quality["image"]["detailed prompts"]
    between = quality["mllm"]["between the judges"]
    renders, soft, decoded = (name for name in image if name.startswith("oracle"))
    tuned = {name: f"image / {name}" for name in image if name.startswith(TUNED)}
    facts, whole = (
        f"{gain[f'{measure}, terse']:.3f} and {gain[f'{measure}, detailed']:.3f} ({gain[f'{measure}, gain']:+.3f} "
        f"[{gain[f'{measure}, gain from']:+.3f}, {gain[f'{measure}, gain to']:+.3f}])"
        for measure in ("share", "whole")
    )
    return {
        "image": table(quality, {"eta 0": "image / eta 0", "eta 1": "image / eta 1"} | tuned, IMAGE_ROWS),
        "detail": (
            "What terse captions state, in pictures drawn from the terse caption and from a faithful detailed prompt, "
            f"with the same noise (difference, 95 % interval): facts right {facts}; whole caption right {whole}."
        ),
        "reading": table(
            quality,
            {
                "held-out renders": f"image / {renders}",
                "dark, subdued, blurred": f"image / {soft}",
                f"decoded by the VAE ({image[decoded]['psnr']:.1f} dB)": f"image / {decoded}",
            },
            READING_ROWS,
        ),
        "mllm": table(quality, {"`mllm`": "mllm / mllm", "`judge`": "mllm / judge"}, MLLM_ROWS),
        "between": (
            f"The errors of the two judges correlate with r = {between['r of preference errors']:.2f} (preference) and "
            f"{between['r of validator errors']:.2f} (validator)."
        ),
    }


def fill(card: str, parts: dict[str, str]) -> str:
    """The card with what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` replaced."""
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        card, count = pattern.subn(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", card)
        if count != 1:
            raise ValueError(f"the card needs one part {name!r}, it has {count}")
    return card
