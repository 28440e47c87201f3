"""params.yaml: what is accepted, and that every problem is told at once with its key."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from t2i_feedback import params
from t2i_feedback.errors import UserError

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
    assert "finetune.epoch: unknown key; is it misspelt?" in refusal(tmp_path, set_key(raw, "finetune.epoch", 3))


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
        ("stage1.max_rounds", 0),
        ("stage1.threshold", 1.5),
        ("stage1.max_invalid_fraction", -0.1),
        ("calibrate.levels", 2),
        ("finetune.eta", 0),
        ("finetune.images_per_prompt", 1),
        ("finetune.timestep_share", 0),
        ("finetune.lora_targets", []),
        ("finetune.learning_rate", 0),
        ("evaluate.extractor", "vgg"),
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
        ("stage1.mllm", "gpt5", "stage1.mllm: no entry of mllms is called 'gpt5'"),
        ("finetune.judge", "gpt5", "finetune.judge: no entry"),
        ("evaluate.judge", "gpt5", "evaluate.judge: no entry"),
        ("finetune.judge", "smollm2", "finetune.judge: mllms.smollm2 reads text alone (images: false)"),
        ("evaluate.judge", "smollm2", "evaluate.judge: mllms.smollm2 reads text alone (images: false)"),
        (
            "finetune.updates_per_epoch",
            3,
            "must divide prompts_per_epoch * images_per_prompt = 64; the nearest that do are 2 and 4",
        ),
        ("finetune.prompts_per_epoch", 128, "finetune.prompts_per_epoch: 128 prompts cannot be drawn"),
        ("finetune.preference", "    ", "preference must not be blank"),
        ("data.fetch", "images", "data: fetch: images goes with source: coco; postcards needs fetch: none"),
        ("data.reference_images", 100, "reference_images must be at least evaluation_captions"),
        ("mllms.cogvlm.max_cost_usd", 5, "mllms.cogvlm: max_cost_usd needs usd_per_million_input_tokens and usd_per"),
        ("evaluate.kid_subset", 300, "evaluate.kid_subset: 300 is more than data.evaluation_captions"),
    ],
)
def test_keys_that_disagree_are_told(raw: dict, tmp_path: Path, key: str, value: object, complaint: str) -> None:
    assert complaint in refusal(tmp_path, set_key(raw, key, value))


def test_a_dot_in_a_catalogue_name_is_refused(raw: dict, tmp_path: Path) -> None:
    raw["mllms"]["llava1.5"] = raw["mllms"]["postcards"]
    assert "llava1.5" in refusal(tmp_path, raw)


def test_a_model_of_text_alone_may_enhance(raw: dict, tmp_path: Path) -> None:
    assert load(tmp_path, set_key(raw, "stage1.mllm", "smollm2")).stage1.mllm == "smollm2"


def test_an_unknown_name_is_told_with_the_known_ones(raw: dict, tmp_path: Path) -> None:
    message = refusal(tmp_path, set_key(raw, "stage1.mllm", "llava"))
    assert all(name in message for name in raw["mllms"])


def test_an_unknown_backend_is_refused(raw: dict, tmp_path: Path) -> None:
    assert "mllms.postcards" in refusal(tmp_path, set_key(raw, "mllms.postcards.backend", "cloud"))


def test_pictures_per_epoch_are_prompts_times_images(raw: dict, tmp_path: Path) -> None:
    finetune = load(tmp_path, raw).finetune
    assert finetune.pictures_per_epoch == finetune.prompts_per_epoch * finetune.images_per_prompt


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
