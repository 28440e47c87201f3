"""What a unit of work takes, from estimates/throughputs.yaml: every figure stands there with its source."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2i_feedback.foundation import yaml_files
from t2i_feedback.foundation.errors import UserError

FIGURES = Path("estimates/throughputs.yaml")


class Figure(BaseModel):
    """A number of the world outside, and where it comes from: an address, `measured: COMMAND`, or `assumed: WHY`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: Annotated[float, Field(gt=0)]
    unit: str
    source: Annotated[str, Field(pattern=r"^(https://\S+|measured: .+|assumed: .+|paper: .+)")]


class Price(Figure):
    value: Annotated[float, Field(ge=0)]


ByGpu = dict[str, Figure]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gpu(Section):
    teraflops: Figure | None = None  # half precision, dense
    bandwidth: Figure | None = None  # of its memory
    memory: Figure
    price: Price
    start: Figure  # of every stage: imports, loading
    probe: Figure | None = None  # of `cpu`: what pace.py measured where its figures were measured


class ImageModel(Section):
    size: Figure  # at which it was measured; cost is taken as proportional to the pixels
    steps: ByGpu  # denoising steps of one image per second, guidance (two passes of the network) included
    update: Figure  # forwards that one trained transition costs
    memory: Figure  # while fine-tuning


class MllmFigures(Section):
    """Measured (questions, texts), or of a size (parameters, image_tokens), or far away (latency, image_tokens)."""

    rounds: Figure  # mean rounds until it accepts, as enhancer and validator
    rounds_combined: Figure | None = None  # the same of the fine-tuned model; taken as `rounds` where there is none
    questions: ByGpu = {}
    texts: ByGpu = {}
    parameters: Figure | None = None
    image_tokens: Figure | None = None
    latency: Figure | None = None


class Extractor(Section):
    dimensions: Figure
    images: ByGpu = {}
    gigaflops: Figure | None = None  # per image


class Common(Section):
    claims: Figure  # statements per calibration image that the validator is asked about, where captions have facts
    items: Figure  # per caption, where the validator is asked item by item
    text_tokens_in: Figure  # words of a question or task, caption included
    prompt_tokens: Figure  # written per enhanced prompt
    remark_tokens: Figure  # written per remark or free answer
    compute: Figure  # share of the peak that reading reaches
    bandwidth: Figure  # share of the peak that writing reaches
    image_bytes: Figure  # on disk, per pixel
    resample: Figure  # seconds per FID of a bootstrap resample of RESAMPLED images, on the processor


class Throughputs(Section):
    common: Common
    gpus: dict[str, Gpu]
    image_models: dict[str, ImageModel]
    mllms: dict[str, MllmFigures]
    extractors: dict[str, Extractor]


def read(path: Path = FIGURES) -> Throughputs:
    """The figures. Raises UserError that names every key that is not as it should be."""
    try:
        return Throughputs.model_validate(yaml_files.read(path))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"{path}: {problems}") from None


def image_model(figures: Throughputs, name: str) -> ImageModel:
    """The figures of an image model. Raises UserError when there are none."""
    if name not in figures.image_models:
        raise missing(f"image_models.{name}")
    return figures.image_models[name]


def mllm(figures: Throughputs, name: str) -> MllmFigures:
    """The figures of an entry of the catalogue. Raises UserError when there are none."""
    if name not in figures.mllms:
        raise missing(f"mllms.{name}")
    return figures.mllms[name]


def of_gpu(found: ByGpu, gpu: str, key: str) -> float:
    """The figure of a GPU. Raises UserError that names `key` when there is none."""
    if gpu not in found:
        raise missing(f"{key}.{gpu}")
    return found[gpu].value


def missing(key: str) -> UserError:
    """What is said of a figure that is not there."""
    return UserError(
        f"{FIGURES} has no {key}: add it with value, unit and source, or estimate what it knows (PROFILE=paper)"
    )
