"""What a run will cost before it is started: GPU hours, judge calls and dollars, stage by stage, and the bottleneck.

    make estimate PROFILE=paper GPUS=8 GPU=a100       # PROFILE left out: the present params.yaml; JSON=1: for a program
    python -m t2i_feedback.tools.estimate.estimate paper --gpus 8 --gpu a100

Counts follow from the parameters alone, one function per stage. What a unit of work takes stands with its source in
estimates/throughputs.yaml. Nothing is loaded, asked or drawn. Where only a size is known of an MLLM, the roofline gives
its time: reading n tokens takes 2 n parameters floating-point operations, writing one takes reading all weights once
per batch. A good estimate is right within a factor of two; `make bench` measures.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2i_feedback import arms, params
from t2i_feedback.calibration.claims import ASKED_AGAIN, OTHERS
from t2i_feedback.foundation import launching, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.traits import TRAITS
from t2i_feedback.mllm import wording
from t2i_feedback.mllm.section import EndpointEntry, LocalEntry
from t2i_feedback.params import Params
from t2i_feedback.tools import profile

FIGURES = Path("estimates/throughputs.yaml")
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5}  # per parameter
RESAMPLED = 1024
SERVED_BYTES = 2.0  # of a server, whose precision is not ours to know: half precision, as vLLM's default

Role = Literal["enhancer", "validator", "judge", "held-out judge"]
Kind = Literal["question", "remark", "prompt"]  # yes/no or a score; a sentence on a picture; a text about a text


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


class ImageModel(Section):
    size: Figure  # at which it was measured; cost is taken as proportional to the pixels
    steps: ByGpu  # denoising steps of one picture per second, guidance (two passes of the network) included
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
    pictures: ByGpu = {}
    gigaflops: Figure | None = None  # per picture


class Common(Section):
    claims: Figure  # statements per calibration image that the validator is asked about, where captions have facts
    items: Figure  # per caption, where the validator is asked item by item
    text_tokens_in: Figure  # words of a question or task, caption included
    prompt_tokens: Figure  # written per enhanced prompt
    remark_tokens: Figure  # written per remark or free answer
    compute: Figure  # share of the peak that reading reaches
    bandwidth: Figure  # share of the peak that writing reaches
    picture_bytes: Figure  # on disk, per pixel
    resample: Figure  # seconds per FID of a bootstrap resample of RESAMPLED pictures, on the processor


class Throughputs(Section):
    common: Common
    gpus: dict[str, Gpu]
    image_models: dict[str, ImageModel]
    mllms: dict[str, MllmFigures]
    extractors: dict[str, Extractor]


def read(path: Path = FIGURES) -> Throughputs:
    """The figures. Raises UserError that names every key that is not as it should be."""
    import yaml

    try:
        return Throughputs.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `git checkout` it, and run from the repository's root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"{path}: {problems}") from None


# ------------------------------------------------------------------------------------------------ counts


@dataclass(frozen=True)
class Asked:
    """Questions of one kind to one entry of the catalogue."""

    role: Role
    mllm: str
    kind: Kind
    count: float


@dataclass(frozen=True)
class Work:
    """What a stage does. Counts of a mean are not whole."""

    stage: str
    pictures: float = 0  # drawn
    transitions: float = 0  # trained on
    features: float = 0  # pictures seen by the extractor
    resamples: int = 0  # FIDs for the interval
    asked: tuple[Asked, ...] = ()


def reference(p: Params) -> Work:
    return Work("reference", features=p.data.reference_images)


def calibrate(p: Params) -> Work:
    """Every image at every level of every trait, two of each again, and in other words."""
    images, found = p.calibrate.images, []
    judges: dict[str, Role] = {p.finetune.judge: "judge", p.evaluate.judge: "held-out judge"}
    for name, role in judges.items():
        again = 1 + len(wording.paraphrases(p.mllms[name].templates, "judge"))
        found.append(Asked(role, name, "question", images * (len(TRAITS) * p.calibrate.levels + 2 * again)))
    return Work("calibrate", asked=tuple(found))


def calibrate_validator(p: Params, common: Common) -> Work:
    """True and altered captions of every image, two of each again, and in other words."""
    entry = p.mllms[p.stage1.mllm]
    words = "question" if p.stage1.questions else "validate"
    claims = common.claims.value if p.data.source == "postcards" else 1 + OTHERS
    again = 1 + len(wording.paraphrases(entry.templates, words))
    pictures = p.calibrate.images * (claims + min(claims, ASKED_AGAIN) * again)
    return Work("calibrate_validator", asked=_validated(p, common, pictures, p.calibrate.images * claims))


def generate(p: Params, arm: str) -> Work:
    return Work(f"generate_{arm}", pictures=p.data.evaluation_captions)


def enhance(p: Params) -> Work:
    return Work("enhance", asked=(Asked("enhancer", p.stage1.mllm, "prompt", p.data.evaluation_captions),))


def validate(p: Params, common: Common, rounds: float, arm: str) -> Work:
    """`validated` has its first pictures from `enhanced`; `combined` draws all of them."""
    captions = p.data.evaluation_captions
    later = captions * (rounds - 1)
    asked = _validated(p, common, captions * rounds, captions if arm == "validated" else 0)
    if p.stage1.feedback and later:
        asked += (Asked("enhancer", p.stage1.mllm, "prompt", later),)
        if not p.stage1.questions:  # item by item, the verdict itself says what is missing
            asked += (Asked("validator", p.stage1.mllm, "remark", later),)
    name = "validate" if arm == "validated" else f"validate_{arm}"
    return Work(name, pictures=later if arm == "validated" else captions * rounds, asked=asked)


def best_of_n(p: Params, common: Common, rounds: float) -> Work:
    """The first picture of each caption is that of `enhanced`, and the ledger has its verdict from `validate`."""
    later = p.data.evaluation_captions * (rounds - 1)
    return Work("best_of_n", pictures=later, asked=_validated(p, common, later, 0))


def finetune(p: Params) -> Work:
    """Each epoch: a rollout, its scores by both judges, and `inner_epochs` passes over its transitions."""
    config = p.finetune
    pictures = config.epochs * config.pictures_per_epoch
    trained = max(1, round(p.model.steps * config.timestep_share))
    asked = [Asked("held-out judge", p.evaluate.judge, "question", pictures)]
    answers = config.epochs * (config.feedback_budget or config.pictures_per_epoch)
    if config.user == "mllm" and "preference" in config.rewards:
        asked.append(Asked("judge", config.judge, "question", answers))
    if "alignment" in config.rewards:
        asked.append(Asked("validator", config.judge, "question", answers))
    if config.enhance_prompts:
        asked.append(Asked("enhancer", config.judge, "prompt", p.data.finetune_captions))
    return Work("finetune", pictures, pictures * config.inner_epochs * trained, asked=tuple(asked))


def evaluate(p: Params, common: Common, arm: str) -> Work:
    """Features and both judges' scores of an arm's pictures. Verdicts on what the loop drew are in the ledger."""
    captions = p.data.evaluation_captions
    asked: tuple[Asked, ...] = (
        Asked("judge", p.finetune.judge, "question", captions),
        Asked("held-out judge", p.evaluate.judge, "question", captions),
    )
    if arm in ("raw", "finetuned"):
        asked += _validated(p, common, captions, 0)
    if p.evaluate.vqa_score:
        asked += (Asked("validator", p.evaluate.vqa_mllm, "question", captions),)
    if p.evaluate.questions and not p.stage1.questions:
        asked += (Asked("validator", p.stage1.mllm, "question", captions * common.items.value),)
    return Work(f"evaluate@{arm}", features=captions, resamples=p.evaluate.resamples, asked=asked)


def work(p: Params, figures: Throughputs) -> list[Work]:
    """Every stage that does more than read and write files, in the order of dvc.yaml."""
    common = figures.common
    mllm = _mllm(figures, p.stage1.mllm)
    rounds, combined = (
        min(figure.value, p.stage1.max_rounds) for figure in (mllm.rounds, mllm.rounds_combined or mllm.rounds)
    )
    return [
        Work("data"),
        reference(p),
        calibrate(p),
        calibrate_validator(p, common),
        generate(p, "raw"),
        enhance(p),
        generate(p, "enhanced"),
        validate(p, common, rounds, "validated"),
        best_of_n(p, common, rounds),
        finetune(p),
        generate(p, "finetuned"),
        validate(p, common, combined, "combined"),
        *(evaluate(p, common, arm) for arm in arms.NAMES),
        Work("report"),
    ]


def _validated(p: Params, common: Common, pictures: float, captions: float) -> tuple[Asked, ...]:
    """Verdicts on pictures; item by item with the lists of items of captions not seen before. None of a text model."""
    name = p.stage1.mllm
    if not p.mllms[name].images or not pictures:
        return ()
    if not p.stage1.questions:
        return (Asked("validator", name, "question", pictures),)
    items = Asked("validator", name, "question", pictures * common.items.value)
    return (Asked("validator", name, "prompt", captions), items) if captions else (items,)


# ------------------------------------------------------------------------------------------------ time and money


@dataclass(frozen=True)
class Cost:
    """Of one stage. `seconds` are those of one GPU that does it all, by what they are for; `wall` is what it lasts."""

    stage: str
    pictures: float
    transitions: float
    calls: float
    seconds: dict[str, float]
    wall: float
    api_usd: float


@dataclass(frozen=True)
class Estimate:
    gpu: str
    gpus: int
    stages: list[Cost]
    hours: float  # from beginning to end
    gpu_hours: float  # of GPUs that work
    calls: dict[str, float]  # role and entry -> calls
    gpu_usd: float  # of all GPUs from beginning to end
    api_usd: float
    bottleneck: str
    reached: dict[str, str]  # entry -> in this process, served on these GPUs, or elsewhere
    disk_gb: float  # pictures and the weights of what is loaded here
    memory_gb: float  # of one GPU while fine-tuning
    gpu_memory_gb: float


def estimate(p: Params, figures: Throughputs, gpu: str, gpus: int) -> Estimate:
    """Raises UserError that names the figure that is missing, or the known GPUs."""
    if gpu not in figures.gpus:
        raise UserError(f"GPU: {FIGURES} knows no {gpu!r}; there are {', '.join(figures.gpus)}. Add it under gpus")
    if gpus < 1:
        raise UserError(f"GPUS: at least 1, not {gpus}")
    machine = figures.gpus[gpu]
    works = work(p, figures)
    costs = [_cost(one, p, figures, gpu, gpus) for one in works]
    wall = sum(cost.wall for cost in costs)
    calls: dict[str, float] = {}
    for one in (asked for each in works for asked in each.asked):
        calls[f"{one.role} {one.mllm}"] = calls.get(f"{one.role} {one.mllm}", 0) + _calls(p, one)
    names = dict.fromkeys(
        (p.stage1.mllm, p.finetune.judge, p.evaluate.judge, *([p.evaluate.vqa_mllm] if p.evaluate.vqa_score else []))
    )
    here = {name: _weights(p, figures, name) for name in names if isinstance(p.mllms[name], LocalEntry)}
    image_model = _image_model(figures, p.model.name)
    trained = image_model.memory.value + sum(here.get(name, 0) for name in {p.finetune.judge, p.evaluate.judge})
    drawn = sum(one.pictures for one in works if one.stage != "finetune") + p.data.reference_images
    return Estimate(
        gpu=gpu,
        gpus=gpus,
        stages=costs,
        hours=wall / 3600,
        gpu_hours=sum(_on_gpus(figures, cost) for cost in costs) / 3600,
        calls=calls,
        gpu_usd=wall / 3600 * gpus * machine.price.value,
        api_usd=sum(cost.api_usd for cost in costs),
        bottleneck=_bottleneck(costs, p, gpus, wall),
        reached={name: _reached(p, figures, name) for name in names},
        disk_gb=drawn * p.model.size**2 * figures.common.picture_bytes.value / 1e9 + sum(here.values()),
        memory_gb=trained,
        gpu_memory_gb=machine.memory.value,
    )


def launched(stage: str) -> bool:
    """Whether several processes can run it. The other stages use one GPU and leave the rest idle."""
    program = stage.partition("@")[0]
    return any(program == name or program.startswith(f"{name}_") for name in launching.STAGES)


def divided(stage: str, what: str, p: Params) -> bool:
    """Whether its processes divide this part: not the resamples, and not what one of them asks a server alone."""
    served = isinstance(p.mllms.get(what.rpartition(" ")[2]), EndpointEntry)
    return launched(stage) and what != "resamples" and (stage == "finetune" or not served)


def _cost(one: Work, p: Params, figures: Throughputs, gpu: str, gpus: int) -> Cost:
    share = gpus if launched(one.stage) else 1
    seconds = {"starting": figures.gpus[gpu].start.value * share}  # every process starts
    if one.pictures:
        seconds["drawing"] = one.pictures * p.model.steps * _step(p, figures, gpu)
    if one.transitions:
        seconds["updates"] = one.transitions * _forwards(p, figures) * _step(p, figures, gpu)
    if one.features:
        seconds["features"] = one.features * _feature(p, figures, gpu)
    if one.resamples:
        rows = min(one.features, figures.extractors[p.evaluate.extractor].dimensions.value)
        seconds["resamples"] = one.resamples * figures.common.resample.value * (rows / RESAMPLED) ** 3
    for asked in one.asked:
        key = f"{asked.role} {asked.mllm}"
        seconds[key] = seconds.get(key, 0) + _answering(asked, p, figures, gpu)
    wall = sum(part / (share if divided(one.stage, what, p) else 1) for what, part in seconds.items())
    if one.stage == "finetune" and p.finetune.overlap_judging:  # the shorter of the two hides behind the longer
        wall -= min(seconds["drawing"], seconds.get(f"judge {p.finetune.judge}", 0)) / share
    usd = sum(_usd(asked, p, figures) for asked in one.asked)
    return Cost(one.stage, one.pictures, one.transitions, sum(_calls(p, a) for a in one.asked), seconds, wall, usd)


def _bottleneck(costs: list[Cost], p: Params, gpus: int, wall: float) -> str:
    """What most of the time goes into, and where."""
    parts: dict[str, dict[str, float]] = {}  # what -> stage -> seconds that it lasts
    for cost in costs:
        for what, seconds in cost.seconds.items():
            parts.setdefault(what, {})[cost.stage] = seconds / (gpus if divided(cost.stage, what, p) else 1)
    what = max(parts, key=lambda what: sum(parts[what].values()))
    stage = max(parts[what], key=lambda stage: parts[what][stage])
    return f"{what} ({sum(parts[what].values()) / wall:.0%} of the time), most of it in {stage}"


def _step(p: Params, figures: Throughputs, gpu: str) -> float:
    """Seconds of one denoising step of one picture. Without guidance the network runs once, not twice."""
    model = _image_model(figures, p.model.name)
    per_second = _of_gpu(model.steps, gpu, f"image_models.{p.model.name}.steps")
    return (p.model.size / model.size.value) ** 2 * (1 if p.model.guidance > 1 else 0.5) / per_second


def _forwards(p: Params, figures: Throughputs) -> float:
    """Forwards that a trained transition costs: checkpointing computes one again, a KL in the loss asks the base."""
    extra = p.finetune.gradient_checkpointing + (p.finetune.kl_weight > 0)
    return _image_model(figures, p.model.name).update.value + extra


def _feature(p: Params, figures: Throughputs, gpu: str) -> float:
    name = p.evaluate.extractor
    found = figures.extractors[name]
    if gpu in found.pictures:
        return 1 / found.pictures[gpu].value
    teraflops = figures.gpus[gpu].teraflops
    if found.gigaflops is None or teraflops is None:
        raise _missing(f"extractors.{name}.pictures.{gpu}")
    return found.gigaflops.value / 1e3 / (teraflops.value * figures.common.compute.value)


def _answering(asked: Asked, p: Params, figures: Throughputs, gpu: str) -> float:
    """Seconds that the questions take one GPU, or that a server elsewhere lets us wait."""
    name, found, entry = asked.mllm, _mllm(figures, asked.mllm), p.mllms[asked.mllm]
    count = _calls(p, asked)
    measured = found.questions if asked.kind == "question" and not _writes(entry) else found.texts
    if gpu in measured:
        return count / measured[gpu].value
    together = entry.batch_size if isinstance(entry, LocalEntry) else entry.concurrency
    if found.latency is not None:
        return count * found.latency.value / together
    teraflops, bandwidth = figures.gpus[gpu].teraflops, figures.gpus[gpu].bandwidth
    if found.parameters is None or teraflops is None or bandwidth is None:
        raise _missing(f"mllms.{name}.{'questions' if asked.kind == 'question' else 'texts'}.{gpu}")
    tokens_in, tokens_out = _tokens(asked, p, figures)
    reading = tokens_in * 2 * found.parameters.value / (teraflops.value * 1e3 * figures.common.compute.value)
    writing = tokens_out * _weights(p, figures, name) / (bandwidth.value * figures.common.bandwidth.value) / together
    return count * (reading + writing)


def _calls(p: Params, asked: Asked) -> float:
    entry = p.mllms[asked.mllm]
    sampled = isinstance(entry, EndpointEntry) and entry.reading == "samples" and asked.kind == "question"
    return asked.count * (entry.samples if sampled and isinstance(entry, EndpointEntry) else 1)


def _writes(entry: LocalEntry | EndpointEntry) -> bool:
    """Whether a question is answered in writing; by probability it takes one pass over its words and nothing more."""
    return entry.reading in ("text", "samples")


def _tokens(asked: Asked, p: Params, figures: Throughputs) -> tuple[float, float]:
    """Tokens read and written per call."""
    common, found = figures.common, _mllm(figures, asked.mllm)
    image = 0.0
    if asked.kind != "prompt":
        if found.image_tokens is None:
            raise _missing(f"mllms.{asked.mllm}.image_tokens")
        image = found.image_tokens.value
    written = {"prompt": common.prompt_tokens.value, "remark": common.remark_tokens.value}
    free = common.remark_tokens.value if _writes(p.mllms[asked.mllm]) else 1
    return image + common.text_tokens_in.value, written.get(asked.kind, free)


def _usd(asked: Asked, p: Params, figures: Throughputs) -> float:
    """What a paid endpoint takes, by the prices of its entry in params.yaml."""
    entry = p.mllms[asked.mllm]
    if isinstance(entry, LocalEntry) or not (entry.usd_per_million_input_tokens or entry.usd_per_million_output_tokens):
        return 0
    tokens_in, tokens_out = _tokens(asked, p, figures)
    price = tokens_in * entry.usd_per_million_input_tokens + tokens_out * entry.usd_per_million_output_tokens
    return _calls(p, asked) * price / 1e6


def _on_gpus(figures: Throughputs, cost: Cost) -> float:
    """Seconds of GPU work: without the waiting for servers elsewhere and the processor's resamples."""
    elsewhere = {name for name, found in figures.mllms.items() if found.latency is not None} | {"resamples"}
    return sum(s for what, s in cost.seconds.items() if what.rpartition(" ")[2] not in elsewhere)


def _weights(p: Params, figures: Throughputs, name: str) -> float:
    """GB of an entry's weights; 0 where its size is not stated (the shipped ones: 6 MB)."""
    entry, parameters = p.mllms[name], _mllm(figures, name).parameters
    if parameters is None:
        return 0
    if isinstance(entry, EndpointEntry):
        return parameters.value * SERVED_BYTES
    return parameters.value * BYTES[entry.dtype if entry.quantisation == "none" else entry.quantisation]


def _reached(p: Params, figures: Throughputs, name: str) -> str:
    if isinstance(p.mllms[name], LocalEntry):
        return "in process"
    return "served elsewhere" if _mllm(figures, name).latency else "served on these GPUs"


def _image_model(figures: Throughputs, name: str) -> ImageModel:
    if name not in figures.image_models:
        raise _missing(f"image_models.{name}")
    return figures.image_models[name]


def _mllm(figures: Throughputs, name: str) -> MllmFigures:
    if name not in figures.mllms:
        raise _missing(f"mllms.{name}")
    return figures.mllms[name]


def _of_gpu(found: ByGpu, gpu: str, key: str) -> float:
    if gpu not in found:
        raise _missing(f"{key}.{gpu}")
    return found[gpu].value


def _missing(key: str) -> UserError:
    return UserError(f"{FIGURES} has no {key}: add it with value, unit and source")


# ------------------------------------------------------------------------------------------------ page


def table(found: Estimate) -> str:
    """Stage by stage, then the sums."""
    lines = [f"{'stage':22}{'pictures':>10}{'transitions':>13}{'calls':>10}{'GPUs':>6}{'time':>10}  most of it"]
    for cost in found.stages:
        most = max(cost.seconds, key=lambda what: cost.seconds[what])
        used = found.gpus if launched(cost.stage) else 1
        lines.append(
            f"{cost.stage:22}{cost.pictures:10,.0f}{cost.transitions:13,.0f}{cost.calls:10,.0f}{used:6}"
            f"{_time(cost.wall):>10}  {most}"
        )
    return "\n".join([*lines, "", *_sums(found)])


def _sums(found: Estimate) -> Iterator[str]:
    yield f"from beginning to end   {_time(found.hours * 3600)} on {found.gpus} x {found.gpu}"
    yield f"GPUs at work            {found.gpu_hours:,.1f} GPU hours"
    for who, count in found.calls.items():
        name = who.rpartition(" ")[2]
        yield f"calls                   {count:,.0f} {who} ({found.reached[name]})"
    yield f"dollars                 {found.gpu_usd:,.2f} for GPUs from beginning to end, {found.api_usd:,.2f} for calls"
    yield f"bottleneck              {found.bottleneck}"
    yield f"disk                    {found.disk_gb:,.1f} GB of pictures and MLLM weights"
    yield f"memory, fine-tuning     {found.memory_gb:,.1f} of {found.gpu_memory_gb:,.0f} GB of each GPU{_fits(found)}"
    yield f"figures and sources     {FIGURES}"


def _fits(found: Estimate) -> str:
    if found.memory_gb <= found.gpu_memory_gb:
        return ""
    return ": does not fit; quantise or serve the judges (docs/judges.md)"


def _time(seconds: float) -> str:
    units: list[tuple[float, str, Callable[[float], float]]] = [
        (100, "s", lambda s: s),
        (6000, "min", lambda s: s / 60),
        (float("inf"), "h", lambda s: s / 3600),
    ]
    return next(f"{scale(seconds):.1f} {unit}" for bound, unit, scale in units if seconds < bound)


def chosen(name: str) -> Params:
    """The present parameters, or with a profile's values in them."""
    import yaml

    return params.check(yaml.safe_load(profile.merge(name)), f"profile {name}") if name else params.load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", default="", help="a file of profiles/, without .yaml; none: params.yaml")
    parser.add_argument("--gpus", type=int, default=1, help="how many")
    parser.add_argument("--gpu", default="cpu", help="which: a name under gpus of estimates/throughputs.yaml")
    parser.add_argument("--json", action="store_true", help="for a program")
    arguments = parser.parse_args()
    found = estimate(chosen(arguments.profile), read(), arguments.gpu, arguments.gpus)
    print(json.dumps(asdict(found), indent=2) if arguments.json else table(found))


if __name__ == "__main__":
    running.run(main)
