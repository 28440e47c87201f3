"""The section `calibrate` of params.yaml: do the judges rank what they judge?"""

from typing import Annotated

from pydantic import Field

from t2i_feedback.foundation.params import FREE, Section


class Calibrate(Section):
    images: Annotated[int, Field(ge=2)]
    levels: Annotated[int, Field(ge=3)]
    image_side: Annotated[int, Field(ge=32)]
    min_rank_correlation: Annotated[float, Field(ge=-1, le=1), FREE]
