"""The section `mllms` of params.yaml: the catalogue, name -> how to reach a model.

An entry's `backend` says which keys it has: each file of `backends/` has a class of entries.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from t2i_feedback.foundation import discovery
from t2i_feedback.mllm import backends
from t2i_feedback.mllm.backends import Entry

if TYPE_CHECKING:
    MllmEntry = Entry
else:
    MllmEntry = Annotated[reduce(or_, discovery.defined(backends, "ENTRY")), Field(discriminator="backend")]
Catalogue = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], MllmEntry]
