"""What the work of a run takes: time, memory, disk and dollars, on GPUs of one kind, and what most of it goes into."""

import importlib
from dataclasses import dataclass

from t2i_feedback import needs
from t2i_feedback.finetuning import objectives
from t2i_feedback.foundation import pipeline
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.backends import Entry
from t2i_feedback.params import Params
from t2i_feedback.tools.estimate.counts import Asked, Work, work
from t2i_feedback.tools.estimate.figures import FIGURES, Throughputs, image_model, missing, mllm, of_gpu
from t2i_feedback.tools.estimate.pace import at

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5}  # per parameter
RESAMPLED = 1024
SERVED_BYTES = 2.0  # of a server, whose precision is not ours to know: half precision, as vLLM's default


@dataclass(frozen=True)
class Cost:
    """Of one stage. `seconds` are those of one GPU that does it all, by what they are for; `wall` is what it lasts."""

    stage: str
    images: float
    transitions: float
    calls: float
    seconds: dict[str, float]
    wall: float
    api_usd: float


@dataclass(frozen=True)
class Estimate:
    gpu: str
    gpus: int
    pace: float
    stages: list[Cost]
    hours: float  # from beginning to end
    gpu_hours: float  # of GPUs that work
    calls: dict[str, float]  # role and entry -> calls
    gpu_usd: float  # of all GPUs from beginning to end
    api_usd: float
    bottleneck: str
    reached: dict[str, str]  # entry -> in this process, served on these GPUs, or elsewhere
    disk_gb: float  # images and the weights of what is loaded here
    memory_gb: float  # of one GPU while fine-tuning
    gpu_memory_gb: float


def estimate(p: Params, figures: Throughputs, gpu: str, gpus: int, pace: float = 1) -> Estimate:
    """`pace`: how many times as fast this processor is as the one of the figures, for `cpu` alone.

    Raises UserError that names the figure that is missing, or the known GPUs.
    """
    if gpu not in figures.gpus:
        raise UserError(f"GPU: {FIGURES} knows no {gpu!r}; there are {', '.join(figures.gpus)}. Add it under gpus")
    if gpus < 1:
        raise UserError(f"GPUS: at least 1, not {gpus}")
    figures, machine = at(figures, pace), figures.gpus[gpu]
    works = work(p, figures)
    costs = [_cost(one, p, figures, gpu, gpus) for one in works]
    wall = sum(cost.wall for cost in costs)
    calls: dict[str, float] = {}
    for one in (asked for each in works for asked in each.asked):
        calls[f"{one.role} {one.mllm}"] = calls.get(f"{one.role} {one.mllm}", 0) + _calls(p, one)
    disk, trained = room(p, figures)
    return Estimate(
        gpu=gpu,
        gpus=gpus,
        pace=pace,
        stages=costs,
        hours=wall / 3600,
        gpu_hours=sum(_on_gpus(figures, cost) for cost in costs) / 3600,
        calls=calls,
        gpu_usd=wall / 3600 * gpus * machine.price.value,
        api_usd=sum(cost.api_usd for cost in costs),
        bottleneck=_bottleneck(costs, p, gpus, wall),
        reached={name: _reached(p, figures, name) for name in needs.used(p)},
        disk_gb=disk,
        memory_gb=trained,
        gpu_memory_gb=machine.memory.value,
    )


def room(p: Params, figures: Throughputs) -> tuple[float, float]:
    """GB of disk that a run fills, and of memory that fine-tuning takes. Raises UserError for a missing figure."""
    here = {name: _weights(p, figures, name) for name, entry in needs.used(p).items() if entry.in_process}
    judges = {p.finetune.judge, p.evaluate.judge}
    trained = image_model(figures, p.model.name).memory.value + sum(here.get(name, 0) for name in judges)
    drawn = sum(one.images for one in work(p, figures) if one.stage != "finetune") + p.data.reference_images
    return drawn * p.model.pixels * figures.common.image_bytes.value / 1e9 + sum(here.values()), trained


def launched(stage: str) -> bool:
    """Whether several processes can run it. The other stages use one GPU and leave the rest idle."""
    program = importlib.import_module(f"{pipeline.STAGES}.{stage.partition('@')[0]}")
    return getattr(program, "DIVIDED", False)


def divided(stage: str, what: str, p: Params) -> bool:
    """Whether its processes divide this part: not the resamples, and not what one of them asks a server alone."""
    entry = p.mllms.get(what.rpartition(" ")[2])
    served = entry is not None and not entry.in_process
    return launched(stage) and what != "resamples" and (stage == "finetune" or not served)


def _cost(one: Work, p: Params, figures: Throughputs, gpu: str, gpus: int) -> Cost:
    share = gpus if launched(one.stage) else 1
    seconds = {"starting": figures.gpus[gpu].start.value * share}  # every process starts
    steps, guidance = p.model.steps, p.model.guidance
    if one.stage == "finetune":
        steps, guidance = p.finetune.steps_of(steps), p.finetune.guidance_of(guidance)
    if one.images:
        seconds["drawing"] = one.images * steps * seconds_of_step(p, figures, gpu, guidance)
    if one.transitions:
        seconds["updates"] = one.transitions * _forwards(p, figures) * seconds_of_step(p, figures, gpu, guidance)
    if one.features:
        seconds["features"] = one.features * _feature(p, figures, gpu)
    if one.resamples:
        rows = min(one.features, figures.extractors[p.evaluate.extractor].dimensions.value)
        seconds["resamples"] = one.resamples * figures.common.resample.value * (rows / RESAMPLED) ** 3
    for asked in one.asked:
        key = f"{asked.role} {asked.mllm}"
        seconds[key] = seconds.get(key, 0) + seconds_of_answers(asked, p, figures, gpu)
    wall = sum(part / (share if divided(one.stage, what, p) else 1) for what, part in seconds.items())
    if one.stage == "finetune" and p.finetune.overlap_judging:  # the shorter of the two hides behind the longer
        wall -= min(seconds["drawing"], seconds.get(f"judge {p.finetune.judge}", 0)) / share
    usd = sum(_usd(asked, p, figures) for asked in one.asked)
    return Cost(one.stage, one.images, one.transitions, sum(_calls(p, a) for a in one.asked), seconds, wall, usd)


def _bottleneck(costs: list[Cost], p: Params, gpus: int, wall: float) -> str:
    """What most of the time goes into, and where."""
    parts: dict[str, dict[str, float]] = {}  # what -> stage -> seconds that it lasts
    for cost in costs:
        for what, seconds in cost.seconds.items():
            parts.setdefault(what, {})[cost.stage] = seconds / (gpus if divided(cost.stage, what, p) else 1)
    what = max(parts, key=lambda what: sum(parts[what].values()))
    stage = max(parts[what], key=lambda stage: parts[what][stage])
    return f"{what} ({sum(parts[what].values()) / wall:.0%} of the time), most of it in {stage}"


def seconds_of_step(p: Params, figures: Throughputs, gpu: str, guidance: float) -> float:
    """Seconds of one denoising step of one image. Without guidance the network runs once, not twice."""
    model = image_model(figures, p.model.name)
    per_second = of_gpu(model.steps, gpu, f"image_models.{p.model.name}.steps")
    return p.model.pixels / model.size.value**2 * (1 if guidance > 1 else 0.5) / per_second


def _forwards(p: Params, figures: Throughputs) -> float:
    """Forwards that a trained transition costs: checkpointing computes one again, a KL in the loss asks the base, and
    the objective may look once more."""
    extra = p.finetune.gradient_checkpointing + (p.finetune.kl_weight > 0)
    extra += objectives.load(p.finetune.objective).further_passes
    return image_model(figures, p.model.name).update.value + extra


def _feature(p: Params, figures: Throughputs, gpu: str) -> float:
    name = p.evaluate.extractor
    found = figures.extractors[name]
    if gpu in found.images:
        return 1 / found.images[gpu].value
    teraflops = figures.gpus[gpu].teraflops
    if found.gigaflops is None or teraflops is None:
        raise missing(f"extractors.{name}.images.{gpu}")
    return found.gigaflops.value / 1e3 / (teraflops.value * figures.common.compute.value)


def seconds_of_answers(asked: Asked, p: Params, figures: Throughputs, gpu: str) -> float:
    """Seconds that the questions take one GPU, or that a server elsewhere lets us wait."""
    name, found, entry = asked.mllm, mllm(figures, asked.mllm), p.mllms[asked.mllm]
    count = _calls(p, asked)
    measured = found.questions if asked.kind == "question" and not _writes(entry) else found.texts
    if gpu in measured:
        return count / measured[gpu].value
    if found.latency is not None:
        return count * found.latency.value / entry.concurrent
    teraflops, bandwidth = figures.gpus[gpu].teraflops, figures.gpus[gpu].bandwidth
    if found.parameters is None or teraflops is None or bandwidth is None:
        raise missing(f"mllms.{name}.{'questions' if asked.kind == 'question' else 'texts'}.{gpu}")
    tokens_in, tokens_out = _tokens(asked, p, figures)
    reading = tokens_in * 2 * found.parameters.value / (teraflops.value * 1e3 * figures.common.compute.value)
    writing = tokens_out * _weights(p, figures, name) / (bandwidth.value * figures.common.bandwidth.value)
    writing /= entry.concurrent
    return count * (reading + writing)


def _calls(p: Params, asked: Asked) -> float:
    entry = p.mllms[asked.mllm]
    return asked.count * (entry.times_asked if entry.reading == "samples" and asked.kind == "question" else 1)


def _writes(entry: Entry) -> bool:
    """Whether a question is answered in writing; by probability it takes one pass over its words and nothing more."""
    return entry.reading in ("text", "samples")


def _tokens(asked: Asked, p: Params, figures: Throughputs) -> tuple[float, float]:
    """Tokens read and written per call."""
    common, found = figures.common, mllm(figures, asked.mllm)
    image = 0.0
    if asked.kind != "prompt":
        if found.image_tokens is None:
            raise missing(f"mllms.{asked.mllm}.image_tokens")
        image = found.image_tokens.value
    written = {"prompt": common.prompt_tokens.value, "remark": common.remark_tokens.value}
    free = common.remark_tokens.value if _writes(p.mllms[asked.mllm]) else 1
    return image + common.text_tokens_in.value, written.get(asked.kind, free)


def _usd(asked: Asked, p: Params, figures: Throughputs) -> float:
    """What a paid endpoint takes, by the prices of its entry in params.yaml."""
    entry = p.mllms[asked.mllm]
    if not entry.cost_usd(1, 1):
        return 0
    tokens_in, tokens_out = _tokens(asked, p, figures)
    return _calls(p, asked) * entry.cost_usd(tokens_in, tokens_out)


def _on_gpus(figures: Throughputs, cost: Cost) -> float:
    """Seconds of GPU work: without the waiting for servers elsewhere and the processor's resamples."""
    elsewhere = {name for name, found in figures.mllms.items() if found.latency is not None} | {"resamples"}
    return sum(s for what, s in cost.seconds.items() if what.rpartition(" ")[2] not in elsewhere)


def _weights(p: Params, figures: Throughputs, name: str) -> float:
    """GB of an entry's weights; 0 where its size is not stated (the shipped ones: 6 MB)."""
    entry, parameters = p.mllms[name], mllm(figures, name).parameters
    if parameters is None:
        return 0
    return parameters.value * (SERVED_BYTES if entry.precision is None else BYTES[entry.precision])


def _reached(p: Params, figures: Throughputs, name: str) -> str:
    if p.mllms[name].in_process:
        return "in process"
    return "served elsewhere" if mllm(figures, name).latency else "served on these GPUs"
