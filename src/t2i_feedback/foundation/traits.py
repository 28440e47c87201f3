"""Which traits of an image a preference names, and in which direction it wants them."""

import re
from typing import Literal, get_args

Trait = Literal["brightness", "contrast", "saturation", "blur"]
TRAITS: tuple[Trait, ...] = get_args(Trait)
LESS: dict[Trait, str] = {  # what a preference says when it wants less of a trait ...
    "brightness": r"dark|dim|gloom|sombre|somber|night|shadow",
    "contrast": r"subdued|muted|low.contrast|flat|hazy|faded",
    "saturation": r"subdued|muted|desaturated|monochrome|gr[ae]y|pale|faded|black.and.white",
    "blur": r"sharp|crisp|in focus|detailed",
}
MORE: dict[Trait, str] = {  # ... or more
    "brightness": r"bright|light\b|sunny|luminous|cheerful",
    "contrast": r"high.contrast|strong contrast|dramatic|striking",
    "saturation": r"vivid|colou?rful|saturated|vibrant|cheerful",
    "blur": r"blur|out of focus|soft\b|dreamy|hazy",
}


def directions(preference: str) -> dict[Trait, int]:
    """+1 or -1 for each trait that the preference wants more or less of; traits that it does not name are left out."""
    found: dict[Trait, int] = {}
    for trait in TRAITS:
        less, more = (bool(re.search(words[trait], preference, re.IGNORECASE)) for words in (LESS, MORE))
        if less != more:
            found[trait] = 1 if more else -1
    return found
