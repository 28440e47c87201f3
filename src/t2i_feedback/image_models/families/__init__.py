"""The families of image models. Each file here defines FAMILY, an `ImageModel`; no other file names it."""

from t2i_feedback.foundation import discovery
from t2i_feedback.image_models.base import ImageModel


def families() -> dict[str, type[ImageModel]]:
    """By the class of their pipelines."""
    from t2i_feedback.image_models import families as package

    return {family.pipeline: family for family in discovery.defined(package, "FAMILY")}
