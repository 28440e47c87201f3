"""The section `report` of params.yaml."""

from typing import Annotated

from pydantic import Field

from t2i_feedback.foundation.params import Count, Section


class Report(Section):
    grid: Count
    stories: Annotated[int, Field(ge=0)]
    stamp: Annotated[str, Field(max_length=40)]
