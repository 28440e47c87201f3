"""The typed mirror of params.yaml: the only module that reads it. Every problem is reported at once, with its key."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]

RewardName = Literal["preference", "brightness", "contrast", "sharpness", "jpeg_size", "alignment"]
OFFICIAL_SPLITS = ("train2014", "val2014", "train2017", "val2017")  # of MS-COCO, those with captions


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Data(Section):
    source: Literal["postcards", "coco", "folder"]
    path: Path
    fetch: Literal["none", "images", "zip"]
    mirror: Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")]  # no password, no query: names are appended
    downloads: Path
    checksums: Literal["published", "first"]
    connections: Annotated[int, Field(ge=1, le=64)]
    train_split: str
    val_split: str
    caption: Literal["shortest", "first", "random"]
    finetune_captions: Count
    evaluation_captions: Annotated[int, Field(ge=4)]
    reference_images: Annotated[int, Field(ge=4)]

    @model_validator(mode="after")
    def _reference_is_large_enough(self) -> "Data":
        if self.reference_images < self.evaluation_captions:
            raise ValueError("reference_images must be at least evaluation_captions: FID compares with all of them")
        return self

    @model_validator(mode="after")
    def _what_is_fetched_is_official(self) -> "Data":
        if self.fetch == "none":
            return self
        if self.source != "coco":
            raise ValueError(f"fetch: {self.fetch} goes with source: coco; {self.source} needs fetch: none")
        for key, split in (("train_split", self.train_split), ("val_split", self.val_split)):
            if split not in OFFICIAL_SPLITS:
                raise ValueError(f"{key}: {split} cannot be fetched; COCO has {', '.join(OFFICIAL_SPLITS)}")
        return self


Scheduler = Literal["ddim", "pndm", "dpmsolver++", "euler"]


def _off_or_on(value: object) -> object:
    """YAML 1.1 reads a bare off or on as false or true."""
    return {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value


class Model(Section):
    name: Annotated[str, Field(min_length=1)]
    revision: str
    dtype: Literal["float32", "bfloat16", "float16"]
    vae_dtype: Literal["same", "float32"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    size: Annotated[int, Field(ge=8, multiple_of=8)]
    scheduler: Scheduler
    steps: Annotated[int, Field(ge=2, le=1000)]
    guidance: Annotated[float, Field(ge=1)]
    negative_prompt: str
    eta: Share
    batch_size: Count
    safety_checker: Annotated[Literal["off", "report", "on"], BeforeValidator(_off_or_on)]
    attention_slicing: bool
    vae_slicing: bool
    vae_tiling: bool
    offload: bool
    compile: bool

    @property
    def sampler(self) -> str:
        """How the arms are drawn, in words."""
        return f"DDIM, eta {self.eta:g}" if self.scheduler == "ddim" else self.scheduler

    @model_validator(mode="after")
    def _what_is_set_is_heeded(self) -> "Model":
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta {self.eta:g} is DDIM's noise; scheduler {self.scheduler} needs eta: 0")
        if self.negative_prompt and self.guidance == 1:
            raise ValueError("negative_prompt has no effect without guidance; set guidance above 1")
        return self


class LocalEntry(Section):
    """A checkpoint that transformers loads into this process."""

    backend: Literal["local"]
    model: Annotated[str, Field(min_length=1)]
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    templates: Literal["general", "postcards"] = "general"
    images: bool = True  # false: a model of text alone, which can enhance and nothing else
    reading: Literal["auto", "probability", "text"] = "auto"  # of yes/no and scores; auto = probability
    batch_size: Count = 8
    max_new_tokens: Count = 96
    trust_remote_code: bool = False


class EndpointEntry(Section):
    """A model behind an OpenAI-compatible server."""

    backend: Literal["endpoint"]
    model: Annotated[str, Field(min_length=1)]
    base_url: Annotated[str, Field(pattern=r"^https?://[^@]+$")]  # no password: keys come from api_key_env
    api_key_env: str | None = None  # name of the environment variable that holds the key
    templates: Literal["general", "postcards"] = "general"
    images: bool = True  # false: a model of text alone, which can enhance and nothing else
    reading: Literal["auto", "probability", "samples", "text"] = "auto"  # of yes/no and scores; auto = the best it has
    samples: Count = 5  # reading samples: how often each question is asked; 1 = auto skips that reading
    concurrency: Count = 8
    max_new_tokens: Count = 96
    timeout_seconds: Positive = 60
    retries: Annotated[int, Field(ge=0)] = 4
    max_calls: Count | None = None  # budget of all stages and runs that share the ledger; None = no limit
    max_cost_usd: Positive | None = None
    usd_per_million_input_tokens: Annotated[float, Field(ge=0)] = 0
    usd_per_million_output_tokens: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _cost_is_reckoned(self) -> "EndpointEntry":
        prices = (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)
        if self.max_cost_usd is not None and not any(prices):
            raise ValueError(
                "max_cost_usd needs usd_per_million_input_tokens and usd_per_million_output_tokens: without them "
                "nothing costs anything, and it never stops"
            )
        return self


_BOUNDS = {  # how fast, how patiently and for how much a model is asked, and by whom: no answer depends on it
    *("batch_size", "concurrency", "timeout_seconds", "retries", "api_key_env"),
    *("max_calls", "max_cost_usd", "usd_per_million_input_tokens", "usd_per_million_output_tokens"),
}


def decisive(entry: LocalEntry | EndpointEntry) -> str:
    """What of an entry decides its answers, as JSON: work that a budget stopped is taken up when it is raised."""
    return entry.model_dump_json(exclude=_BOUNDS)


MllmEntry = Annotated[LocalEntry | EndpointEntry, Field(discriminator="backend")]


class Stage1(Section):
    mllm: str
    max_rounds: Count
    threshold: Share
    feedback: bool
    questions: bool
    max_invalid_fraction: Share


class Calibrate(Section):
    images: Annotated[int, Field(ge=2)]
    levels: Annotated[int, Field(ge=3)]
    min_rank_correlation: Annotated[float, Field(ge=-1, le=1)]


class Finetune(Section):
    judge: str
    preference: Annotated[str, Field(min_length=3)]
    user: Literal["mllm", "pixels", "file"]
    reward: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    acquisition: Literal["all", "random", "uncertainty"]
    feedback_budget: Count | None
    surrogate_weight: Share
    enhance_prompts: bool
    require_calibrated: bool
    epochs: Count
    prompts_per_epoch: Count
    images_per_prompt: Annotated[int, Field(ge=2)]
    eta: Annotated[float, Field(gt=0, le=1)]
    inner_epochs: Count
    updates_per_epoch: Count
    timestep_share: Annotated[float, Field(gt=0, le=1)]
    min_sigma: Annotated[float, Field(ge=0)]
    train_batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive
    clip_range: Positive
    advantage: Literal["per_prompt", "per_batch"]
    advantage_clip: Positive
    kl_weight: Annotated[float, Field(ge=0)]
    max_kl: Positive | None
    max_held_out_drop: Positive | None
    overlap_judging: bool
    lora_rank: Count
    lora_alpha: Count
    lora_targets: Annotated[list[str], Field(min_length=1)]
    optimiser: Literal["adamw", "adamw8bit"]
    gradient_checkpointing: bool
    keep_last: Count
    max_invalid_fraction: Share

    @property
    def pictures_per_epoch(self) -> int:
        return self.prompts_per_epoch * self.images_per_prompt

    @property
    def rewards(self) -> dict[RewardName, float]:
        """Name -> weight, without those of weight 0."""
        return {name: self.reward[name] for name in get_args(RewardName) if self.reward.get(name)}

    @property
    def judge_calls_per_epoch(self) -> int:
        """How many questions about pictures the judge's model gets: for the preference, for alignment, or both."""
        kinds = ("alignment" in self.rewards) + (self.user == "mllm" and "preference" in self.rewards)
        return kinds * (self.feedback_budget or self.pictures_per_epoch)

    @property
    def asks_judge(self) -> bool:
        """Whether the judge's model is needed at all."""
        return bool(self.judge_calls_per_epoch) or self.enhance_prompts

    @model_validator(mode="after")
    def _rewards_are_known(self) -> "Finetune":
        if unknown := [name for name in self.reward if name not in get_args(RewardName)]:
            raise ValueError(f"reward: {', '.join(unknown)} is no reward; there are {', '.join(get_args(RewardName))}")
        if not self.rewards:
            raise ValueError("reward: every weight is 0, so nothing is rewarded; give at least one name a weight")
        if self.user != "mllm" and "preference" not in self.rewards:
            raise ValueError(f"user {self.user} scores the preference, which has no weight in finetune.reward")
        return self

    @model_validator(mode="after")
    def _budget_goes_with_acquisition(self) -> "Finetune":
        pictures, budget = self.pictures_per_epoch, self.feedback_budget
        if budget is not None and budget > pictures:
            raise ValueError(f"feedback_budget {budget} is more than the {pictures} pictures of an epoch")
        if self.acquisition == "all":
            if budget not in (None, pictures):
                raise ValueError(
                    f"feedback_budget {budget} is less than the {pictures} pictures of an epoch: choose acquisition "
                    "random or uncertainty, or feedback_budget null"
                )
            return self
        if budget is None:
            raise ValueError(
                f"acquisition {self.acquisition} needs a feedback_budget: how many of the {pictures} pictures of an "
                "epoch the user is asked about"
            )
        if self.advantage == "per_prompt" and not self.surrogate_weight and budget < 2 * self.prompts_per_epoch:
            raise ValueError(
                f"feedback_budget {budget} leaves prompts with one answer, which cannot be compared: with "
                f"surrogate_weight 0 ask at least 2 x prompts_per_epoch = {2 * self.prompts_per_epoch}, or choose "
                "advantage per_batch"
            )
        return self

    @model_validator(mode="after")
    def _overlap_is_possible(self) -> "Finetune":
        if self.overlap_judging and (self.acquisition != "all" or self.user == "file"):
            raise ValueError(
                "overlap_judging needs acquisition all and user mllm or pixels: which pictures to ask about is settled "
                "when all are drawn"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> "Finetune":
        if not self.preference.strip():
            raise ValueError("preference must not be blank")
        if self.pictures_per_epoch % self.updates_per_epoch:
            total, wanted = self.pictures_per_epoch, self.updates_per_epoch
            divisors = [count for count in range(1, total + 1) if total % count == 0]
            nearest = sorted(divisors, key=lambda count: abs(count - wanted))[:2]
            raise ValueError(
                f"updates_per_epoch {wanted} must divide prompts_per_epoch * images_per_prompt = {total}; the nearest "
                f"that do are {' and '.join(map(str, sorted(nearest)))}"
            )
        return self


class Evaluate(Section):
    judge: str
    protocol: Literal["own", "paper", "coco30k-256", "coco5k"]
    size: Annotated[int, Field(ge=8)] | None  # None = model.size
    resizer: Literal["crop_lanczos", "crop_bicubic", "squash_bicubic"]
    extractor: Literal["efficientnet-lite0", "inception-v3-compat", "clip"]
    weights: Annotated[str, Field(min_length=1)] | None  # None = the extractor's own
    clip_score: Annotated[str, Field(min_length=1)] | None  # None = not measured
    vqa_score: bool
    vqa_mllm: str
    questions: bool
    resamples: Annotated[int, Field(ge=50)]
    splits: Count
    kid_subset: Annotated[int, Field(ge=2)]
    kid_subsets: Count
    neighbourhood: Count
    max_invalid_fraction: Share

    @model_validator(mode="after")
    def _weights_fit_the_extractor(self) -> "Evaluate":
        if self.extractor == "clip" and self.weights is None:
            raise ValueError("weights: the extractor clip needs a CLIP checkpoint, a folder or a hub id")
        if self.extractor == "efficientnet-lite0" and self.weights is not None:
            raise ValueError(f"weights: efficientnet-lite0 has its own and cannot take {self.weights}; set null")
        return self


_INCEPTION: dict[str, object] = {"evaluate.extractor": "inception-v3-compat", "evaluate.weights": None}
_COCO: dict[str, object] = {"data.source": "coco", "data.caption": "random"}
PROTOCOLS: dict[str, dict[str, object]] = {  # evaluate.protocol -> the keys that it demands, and their values
    "own": {},
    # Our reading of the paper, which states neither n nor resolution nor resizer.
    "paper": _INCEPTION
    | _COCO
    | {
        "data.val_split": "val2014",
        "data.evaluation_captions": 5000,
        "data.reference_images": 5000,
        "model.size": 512,
        "evaluate.size": 512,
        "evaluate.resizer": "crop_lanczos",
        "evaluate.splits": 10,
    },
    # BK-SDM's (Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", 2023), whose table
    # and model cards give Stable Diffusion 1.4 FID 13.05 and IS 36.76. By its code (Nota-NetsPresso/BK-SDM:
    # src/generate.py, src/get_stat_mscoco_val2014.py, src/utils/misc.py, scripts/eval_scores.sh) pictures and all
    # 40,504 images of val2014 are resized to 256 x 256 by Pillow's default, unequal sides and all.
    "coco30k-256": _INCEPTION
    | _COCO
    | {
        "data.val_split": "val2014",
        "data.evaluation_captions": 30000,
        "data.reference_images": 40504,
        "model.size": 512,
        "evaluate.size": 256,
        "evaluate.resizer": "squash_bicubic",
        "evaluate.splits": 10,
    },
    # One caption for each of the 5,000 images of val2017, at full size. Who uses them states no resizer: ours.
    "coco5k": _INCEPTION
    | _COCO
    | {
        "data.val_split": "val2017",
        "data.evaluation_captions": 5000,
        "data.reference_images": 5000,
        "model.size": 512,
        "evaluate.size": 512,
        "evaluate.resizer": "crop_lanczos",
        "evaluate.splits": 10,
    },
}


class Report(Section):
    grid: Count
    stories: Annotated[int, Field(ge=0)]
    stamp: Annotated[str, Field(max_length=40)]


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    data: Data
    model: Model
    mllms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], MllmEntry]
    stage1: Stage1
    calibrate: Calibrate
    finetune: Finetune
    evaluate: Evaluate
    report: Report

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        problems = []
        for key, name in (
            ("stage1.mllm", self.stage1.mllm),
            ("finetune.judge", self.finetune.judge),
            ("evaluate.judge", self.evaluate.judge),
            ("evaluate.vqa_mllm", self.evaluate.vqa_mllm),
        ):
            if name not in self.mllms:
                problems.append(
                    f"{key}: no entry of mllms is called {name!r}; there are {', '.join(sorted(self.mllms))}"
                )
            elif key != "stage1.mllm" and not self.mllms[name].images:
                problems.append(f"{key}: mllms.{name} reads text alone (images: false) and can judge no picture")
        validator = self.mllms.get(self.stage1.mllm)
        if self.evaluate.questions and validator is not None and not validator.images:
            problems.append(
                f"evaluate.questions: they are the validator's, and mllms.{self.stage1.mllm} (stage1.mllm) reads text "
                "alone (images: false)"
            )
        if self.finetune.judge == self.evaluate.judge:
            problems.append(
                f"evaluate.judge: {self.evaluate.judge} is finetune.judge too; the held-out judge must be another entry"
            )
        if self.finetune.prompts_per_epoch > self.data.finetune_captions:
            problems.append(
                f"finetune.prompts_per_epoch: {self.finetune.prompts_per_epoch} prompts cannot be drawn from "
                f"data.finetune_captions = {self.data.finetune_captions}"
            )
        if self.evaluate.kid_subset > self.data.evaluation_captions:
            problems.append(
                f"evaluate.kid_subset: {self.evaluate.kid_subset} is more than data.evaluation_captions = "
                f"{self.data.evaluation_captions}"
            )
        for key, least in (("splits", self.evaluate.splits), ("neighbourhood", self.evaluate.neighbourhood + 1)):
            if least > self.data.evaluation_captions:
                count = self.data.evaluation_captions
                problems.append(f"evaluate.{key}: {getattr(self.evaluate, key)} is too many for {count} pictures")
        problems += self._broken_demands()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _broken_demands(self) -> list[str]:
        """One line for each key that is not what the named protocol demands."""
        problems = []
        for key, needed in PROTOCOLS[self.evaluate.protocol].items():
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if value != needed:
                needed, value = ("null" if x is None else x for x in (needed, value))
                problems.append(f"{key}: evaluate.protocol {self.evaluate.protocol} needs {needed}, not {value}")
        return problems


def load(path: Path = paths.PARAMS) -> Params:
    """Read and check params.yaml. Raises UserError that lists every problem with its key."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return check(raw, str(path))


def check(raw: object, source: str) -> Params:
    """Type what a YAML file held. Raises UserError that lists every problem of `source` with its key."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source} has problems:\n" + "\n".join(f"  {line}" for line in _problems(error))) from None


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in ("local", "endpoint"))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key; is it misspelt?"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {problem['input']!r}"
        lines += [f"{key}: {part}" if key else part for part in message.splitlines()]
    return lines
