"""params.yaml: what is accepted, and that every problem is told at once with its key."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from t2i_feedback import params
from t2i_feedback.evaluation.protocols import PROTOCOLS
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards import registry

REPOSITORY = Path(__file__).parents[2]
SIX = {"llava15-7b", "llava15-13b", "llava16-7b", "llava16-13b", "gpt4", "cogvlm"}


@pytest.fixture
def raw() -> dict:
    """The shipped params.yaml."""
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(tmp_path: Path, raw: object) -> params.Params:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return params.load(path)


def refusal(tmp_path: Path, raw: object) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, raw)
    return str(caught.value)


def set_key(raw: dict, key: str, value: object) -> dict:
    changed = copy.deepcopy(raw)
    *sections, last = key.split(".")
    section = changed
    for name in sections:
        section = section[name]
    section[last] = value
    return changed


def test_the_shipped_file_is_valid(raw: dict, tmp_path: Path) -> None:
    assert load(tmp_path, raw).stage1.mllm in raw["mllms"]


def test_the_papers_six_mllms_are_in_the_catalogue(raw: dict) -> None:
    assert set(raw["mllms"]) >= SIX


def test_the_page_on_judges_has_the_six_and_names_no_entry_that_is_not_there(raw: dict) -> None:
    page = (REPOSITORY / "docs" / "judges.md").read_text()
    six = page.split("## The paper's six")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", six, re.MULTILINE)) == SIX
    named = re.findall(r"# entry ([\w-]+)", page) + re.findall(r"(?:stage1\.mllm|JUDGE)=([a-z][\w-]*)", page)
    assert set(named) <= set(raw["mllms"])
    assert named


def test_an_unknown_key_is_named(raw: dict, tmp_path: Path) -> None:
    assert "finetune.epoch: unknown key; is finetune.epochs meant?" in refusal(
        tmp_path, set_key(raw, "finetune.epoch", 3)
    )
    assert "  sead: unknown key; is seed meant?" in refusal(tmp_path, set_key(raw, "sead", 3))
    assert "finetune.zzz: unknown key; is it misspelt?" in refusal(tmp_path, set_key(raw, "finetune.zzz", 3))


def test_a_missing_key_is_named(raw: dict, tmp_path: Path) -> None:
    del raw["finetune"]["epochs"]
    assert "finetune.epochs: field required" in refusal(tmp_path, raw)


def test_all_problems_are_told_at_once(raw: dict, tmp_path: Path) -> None:
    broken = set_key(set_key(set_key(raw, "seed", -1), "model.size", 63), "finetune.epoch", 3)
    message = refusal(tmp_path, broken)
    assert all(key in message for key in ("seed:", "model.size:", "finetune.epoch:"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "many"),
        ("data.source", "imagenet"),
        ("data.caption", "longest"),
        ("data.finetune_captions", 0),
        ("data.fetch", "all"),
        ("data.mirror", "images.cocodataset.org"),
        ("data.mirror", "http://user:password@127.0.0.1"),
        ("data.mirror", "http://127.0.0.1/?file="),
        ("data.checksums", "none"),
        ("data.connections", 0),
        ("model.guidance", 0.5),
        ("model.steps", 1),
        ("model.dtype", "int8"),
        ("model.vae_dtype", "float16"),
        ("model.scheduler", "ancestral"),
        ("model.safety_checker", "maybe"),
        ("finetune.optimiser", "sgd"),
        ("finetune.objective", "grpo"),
        ("stage1.max_rounds", 0),
        ("stage1.threshold", 1.5),
        ("stage1.max_invalid_fraction", -0.1),
        ("calibrate.levels", 2),
        ("finetune.noise.level", 0),
        ("finetune.images_per_prompt", 1),
        ("finetune.timestep_share", 0),
        ("finetune.lora_targets", []),
        ("finetune.learning_rate", 0),
        ("evaluate.extractor", "vgg"),
        ("evaluate.protocol", "mine"),
        ("evaluate.resizer", "nearest"),
        ("evaluate.size", 4),
        ("model.size", [64, 60]),
        ("model.size", [64]),
        ("finetune.noise.kind", "brownian"),
        ("finetune.noise.window", 0),
        ("finetune.steps", 1),
        ("mllms.gpt4.base_url", "api.openai.com"),
        ("mllms.gpt4.max_calls", 0),
        ("mllms.gpt4.reading", "logprobs"),
        ("mllms.gpt4.samples", 0),
        ("mllms.postcards.reading", "samples"),  # a checkpoint in process always gives probabilities
        ("stage1.questions", "some"),
        ("mllms.postcards.quantisation", "2bit"),
    ],
)
def test_an_impossible_value_is_named_by_its_key(raw: dict, tmp_path: Path, key: str, value: object) -> None:
    assert f"{key}: " in refusal(tmp_path, set_key(raw, key, value))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("stage1.mllm", "nobody", "stage1.mllm: no entry of mllms is called 'nobody'"),
        ("finetune.judge", "nobody", "finetune.judge: no entry"),
        ("evaluate.judge", "nobody", "evaluate.judge: no entry"),
        ("finetune.judge", "smollm2", "finetune.judge: mllms.smollm2 reads text alone (images: false)"),
        ("evaluate.judge", "smollm2", "evaluate.judge: mllms.smollm2 reads text alone (images: false)"),
        (
            "finetune.updates_per_epoch",
            3,
            "must divide prompts_per_epoch * images_per_prompt = 64; the nearest that do are 2 and 4",
        ),
        ("finetune.prompts_per_epoch", 128, "finetune.prompts_per_epoch: 128 prompts cannot be drawn"),
        ("finetune.preference", "    ", "preference must not be blank"),
        ("model", {"scheduler": "euler", "eta": 0.5}, "model: eta 0.5 is DDIM's noise; scheduler euler needs eta: 0"),
        ("model", {"negative_prompt": "a", "guidance": 1}, "model: negative_prompt has no effect without guidance"),
        (
            "finetune.noise",
            {"kind": "ddim", "level": 1.3, "window": None},
            "finetune.noise: level 1.3: ddim has 1 at most",
        ),
        (
            "finetune.noise",
            {"kind": "cps", "level": 1.3, "window": None},
            "finetune.noise: level 1.3: cps has 1 at most",
        ),
        ("finetune.feedback_budget", 0, "finetune.feedback_budget: input should be greater than or equal to 1, not 0"),
        ("finetune.feedback_budget", 65, "feedback_budget 65 is more than the 64 images of an epoch"),
        ("finetune.feedback_budget", 32, "choose acquisition random or uncertainty, or feedback_budget null"),
        ("finetune.acquisition", "random", "acquisition random needs a feedback_budget"),
        ("finetune.acquisition", "uncertainty", "acquisition uncertainty needs a feedback_budget"),
        ("finetune.reward", {"beauty": 1}, "reward: beauty is no reward; there are preference, brightness, contrast,"),
        ("finetune.reward", {"preference": 0}, "reward: every weight is 0"),
        (
            "finetune.reward",
            {"brightness": float("inf")},
            "finetune.reward.brightness: input should be a finite",
        ),
        ("data.fetch", "images", "data: fetch: images goes with source: coco; postcards needs fetch: none"),
        ("data.reference_images", 100, "reference_images must be at least evaluation_captions"),
        ("mllms.cogvlm.max_cost_usd", 5, "mllms.cogvlm: max_cost_usd needs usd_per_million_input_tokens and usd_per"),
        ("evaluate.kid_subset", 300, "evaluate.kid_subset: 300 is more than data.evaluation_captions"),
        ("evaluate.vqa_mllm", "nobody", "evaluate.vqa_mllm: no entry of mllms is called 'nobody'"),
        ("evaluate.vqa_mllm", "smollm2", "evaluate.vqa_mllm: mllms.smollm2 reads text alone (images: false)"),
        ("evaluate.extractor", "clip", "evaluate: weights: the extractor clip needs a CLIP checkpoint"),
        ("evaluate.weights", "mine.pth", "evaluate: weights: efficientnet-lite0 has its own and cannot take mine.pth"),
    ],
)
def test_keys_that_disagree_are_told(raw: dict, tmp_path: Path, key: str, value: object, complaint: str) -> None:
    changed = set_key(raw, key, raw[key] | value if key == "model" else value)
    assert complaint in refusal(tmp_path, changed)


@pytest.mark.parametrize(("word", "read"), [("off", "off"), ("on", "on"), ("report", "report"), ('"on"', "on")])
def test_off_and_on_are_words_here_though_yaml_has_them_as_false_and_true(word: str, read: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text().replace("safety_checker: off", f"safety_checker: {word}")
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(tmp_path / "params.yaml").model.safety_checker == read


@pytest.mark.parametrize("protocol", ["paper", "coco30k-256", "coco5k"])
def test_a_named_protocol_tells_every_key_that_breaks_it_with_the_value_it_needs(
    raw: dict, tmp_path: Path, protocol: str
) -> None:
    message = refusal(tmp_path, set_key(raw, "evaluate.protocol", protocol))
    for key, needed in PROTOCOLS[protocol].items():
        section, name = key.split(".")
        if raw[section][name] != needed:
            assert f"{key}: evaluate.protocol {protocol} needs {needed}, not " in message
    assert "evaluate.size: evaluate.protocol" in message
    assert message.count("evaluate.protocol") >= 6


def test_a_named_protocol_accepts_what_it_demands_and_no_other_weights(raw: dict, tmp_path: Path) -> None:
    for key, needed in PROTOCOLS["coco30k-256"].items():
        raw = set_key(raw, key, needed)
    raw = set_key(raw, "evaluate.protocol", "coco30k-256")
    assert load(tmp_path, raw).evaluate.size == 256
    message = refusal(tmp_path, set_key(raw, "evaluate.weights", "random.pth"))
    assert "evaluate.weights: evaluate.protocol coco30k-256 needs null, not random.pth" in message


def test_items_are_asked_of_a_validator_that_sees(raw: dict, tmp_path: Path) -> None:
    raw = set_key(set_key(raw, "stage1.mllm", "smollm2"), "evaluate.questions", True)
    assert "evaluate.questions: they are the validator's, and mllms.smollm2" in refusal(tmp_path, raw)


def test_a_dot_in_a_catalogue_name_is_refused(raw: dict, tmp_path: Path) -> None:
    raw["mllms"]["llava1.5"] = raw["mllms"]["postcards"]
    assert "llava1.5" in refusal(tmp_path, raw)


def test_code_of_a_hub_s_repository_is_run_at_a_commit_alone(raw: dict, tmp_path: Path) -> None:
    entry = {"backend": "local", "model": "owner/model", "trust_remote_code": True}
    raw["mllms"]["other"] = entry
    with pytest.raises(UserError, match=r"mllms\.other\.revision: 'main' moves, and trust_remote_code runs"):
        load(tmp_path, raw)
    commit = "0123456789abcdef" * 2 + "01234567"
    for settled in ({"revision": commit}, {"model": str(tmp_path)}, {"model": "/not/mounted"}):
        raw["mllms"]["other"] = entry | settled
        load(tmp_path, raw)


def test_a_model_of_text_alone_may_enhance(raw: dict, tmp_path: Path) -> None:
    assert load(tmp_path, set_key(raw, "stage1.mllm", "smollm2")).stage1.mllm == "smollm2"


def test_an_unknown_name_is_told_with_the_known_ones(raw: dict, tmp_path: Path) -> None:
    message = refusal(tmp_path, set_key(raw, "stage1.mllm", "llava"))
    assert all(name in message for name in raw["mllms"])


def test_an_unknown_backend_is_refused(raw: dict, tmp_path: Path) -> None:
    assert "mllms.postcards" in refusal(tmp_path, set_key(raw, "mllms.postcards.backend", "cloud"))


def test_images_per_epoch_are_prompts_times_images(raw: dict, tmp_path: Path) -> None:
    finetune = load(tmp_path, raw).finetune
    assert finetune.images_per_epoch == finetune.prompts_per_epoch * finetune.images_per_prompt


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run from the repository's root"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "7", "- a", "seed: [", "a: b: c"])
def test_what_is_no_mapping_is_one_clear_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        params.load(tmp_path / "params.yaml")


def test_only_official_splits_can_be_fetched(raw: dict, tmp_path: Path) -> None:
    raw["data"] |= {"source": "coco", "fetch": "zip", "train_split": "train2014", "val_split": "test2014"}
    assert "val_split: test2014 cannot be fetched; COCO has train2014, val2014" in refusal(tmp_path, raw)
    raw["data"]["val_split"] = "val2017"
    assert load(tmp_path, raw).data.fetch == "zip"


def changed(raw: dict, **keys: object) -> dict:
    for key, value in keys.items():
        raw = set_key(raw, f"finetune.{key}", value)
    return raw


@pytest.mark.parametrize("acquisition", ["random", "uncertainty"])
def test_a_budget_may_be_all_images(tmp_path: Path, raw: dict, acquisition: str) -> None:
    load(tmp_path, changed(raw, acquisition=acquisition, feedback_budget=64))


def test_answers_that_cannot_be_compared_are_refused(tmp_path: Path, raw: dict) -> None:
    few = changed(raw, acquisition="random", feedback_budget=15, surrogate_weight=0)
    assert "ask at least 2 x prompts_per_epoch = 16" in refusal(tmp_path, few)
    load(tmp_path, changed(few, advantage="per_batch"))


def test_questions_cannot_be_asked_before_it_is_settled_which(tmp_path: Path, raw: dict) -> None:
    for keys in (
        {"acquisition": "random", "feedback_budget": 32, "user": "mllm"},
        {"acquisition": "all", "user": "file"},
    ):
        both = changed(raw, overlap_judging=True, **{"feedback_budget": None} | keys)
        assert "overlap_judging needs acquisition all and user mllm or pixels" in refusal(tmp_path, both)


def test_a_user_whose_preference_has_no_weight_is_refused(tmp_path: Path, raw: dict) -> None:
    alone = changed(raw, user="file", reward={"brightness": -1})
    assert "user file scores the preference, which has no weight in finetune.reward" in refusal(tmp_path, alone)


def test_a_reward_of_weight_0_is_left_out_and_the_judge_is_asked_for_what_it_is_needed_for(
    tmp_path: Path, raw: dict
) -> None:
    def questions(**values) -> list[str]:
        config = load(tmp_path, changed(raw, **values)).finetune
        return registry.questions(config.reward, config.user)

    assert registry.used({"preference": 0, "brightness": -1}) == {"brightness": -1}
    assert questions(reward={"preference": 0, "brightness": -1}) == []
    assert questions(reward={"shows_caption": 1, "preference": 1}) == ["judge", "validator"]
    assert questions(reward={"shows_caption": 1}) == ["validator"]
    assert questions(reward={"preference": 1}, user="pixels") == []


def test_a_budget_says_how_many_images_are_asked_about(tmp_path: Path, raw: dict) -> None:
    some = changed(raw, acquisition="random", feedback_budget=32)
    assert load(tmp_path, some).finetune.answers_per_epoch == 32
    assert load(tmp_path, raw).finetune.answers_per_epoch == 64


@pytest.mark.parametrize(
    ("name", "guidance", "warned"),
    [
        ("models/postcards/sd", 1.0, False),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 1.0, True),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", None, False),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 2.0, False),  # the arms'
    ],
)
def test_training_with_other_guidance_than_the_arms_is_told_where_it_was_not_tried(
    raw: dict, name: str, guidance: float | None, warned: bool
) -> None:
    raw["model"]["name"], raw["finetune"]["guidance"] = name, guidance
    told = [line for line in params.check(raw, "params.yaml").warnings() if line.startswith("finetune.guidance")]
    assert bool(told) == warned
