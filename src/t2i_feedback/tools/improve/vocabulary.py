"""The words that the shipped models know: those of the drawn world's captions."""

import re
from collections.abc import Sequence

from t2i_feedback.datasets.postcards.captions import COLUMN_WORDS, KIND_WORDS, PLACES, SIZE_WORDS
from t2i_feedback.datasets.postcards.world import COLOURS
from t2i_feedback.params import Params

SHOWN = 12  # unknown words that a warning names
KNOWN = {
    word
    for phrases in (
        COLOURS,
        *KIND_WORDS.values(),
        *SIZE_WORDS.values(),
        *COLUMN_WORDS.values(),
        *((*where, *nouns, extra) for where, nouns, extra in PLACES.values()),
        ("a", "an", "the", "and", "with", "of", "postcard"),
    )
    for phrase in phrases
    for word in phrase.split()
}


def beyond(texts: Sequence[str], p: Params) -> str:
    """One line that names the words of prompts which the shipped MLLM never saw; empty where it knows them all, or
    where the MLLM is another."""
    if p.mllms[p.stage1.mllm].templates != "postcards":
        return ""
    unknown = [word for word in dict.fromkeys(re.findall(r"[^\W\d_]+", " ".join(texts).lower())) if word not in KNOWN]
    if not unknown:
        return ""
    named = ", ".join(unknown[:SHOWN]) + (" ..." if len(unknown) > SHOWN else "")
    return (
        f"the shipped models know drawn postcards alone and never saw: {named}; whether such a prompt is accepted "
        "means nothing (what they know: docs/data.md#the-drawn-world)"
    )
