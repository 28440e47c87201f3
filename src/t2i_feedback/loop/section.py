"""The section `stage1` of params.yaml: enhance, generate, validate, round again until accepted."""

from typing import Annotated

from t2i_feedback.foundation.params import FREE, Count, EntryName, Section, Share


class Stage1(Section):
    mllm: EntryName
    max_rounds: Count
    threshold: Share
    feedback: bool
    questions: bool
    max_invalid_fraction: Annotated[Share, FREE]
