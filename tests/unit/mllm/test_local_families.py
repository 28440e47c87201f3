"""The families of MLLMs behind one backend: images of any size and texts of any length, together as alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_mllms
import torch
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import Decoding, Reply, Request
from t2i_feedback.mllm.local import LocalMllm

torch.set_num_threads(1)

SIZES = ((32, 32), (64, 32), (20, 90), (300, 200), (31, 33), (64, 64), (120, 40), (48, 80))
TEXTS = [f"does this picture show {'a red house and ' * i}a sun?" for i in range(8)]


def entry(folder: Path, **values) -> LocalEntry:
    return LocalEntry(backend="local", model=str(folder), device="cpu", **values)


@pytest.fixture(scope="module", params=tiny_mllms.FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllms.FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "checkpoint")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for width, height in SIZES]
    return [Request(text, Image.fromarray(array)) for text, array in zip(TEXTS[::-1], noise, strict=True)]


def ask(folder: Path, batch_size: int, requests: list[Request], decoding: Decoding) -> list[Reply]:
    backend = LocalMllm("tiny", entry(folder, batch_size=batch_size), "")
    found = dict(pair for group in backend.answers(requests, decoding) for pair in group)
    return [found[i] for i in range(len(requests))]


@pytest.mark.parametrize("candidates", [("yes", "no"), roles.SCORES])
def test_a_batch_of_eight_reads_as_each_alone(folder: Path, requests, candidates, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    together = ask(folder, 8, requests, Decoding(8, candidates))
    alone = ask(folder, 1, requests, Decoding(8, candidates))
    for one, other in zip(alone, together, strict=True):
        assert one.mass == pytest.approx(other.mass, rel=1e-3)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert one.tokens_in == other.tokens_in
    assert len({reply.tokens_in for reply in together}) > 5  # texts and images of other lengths


@torch.inference_mode()
def probability(backend: LocalMllm, request: Request, sequence: tuple[int, ...]) -> float:
    """Of the sequence as the answer's beginning: one forward pass over all of it, without a cache."""
    inputs = backend._inputs([request])
    length = inputs["input_ids"].shape[1]
    fill = {"input_ids": torch.tensor([sequence]), "attention_mask": torch.ones(1, len(sequence), dtype=torch.long)}
    for name in [name for name, tensor in inputs.items() if tensor.shape == (1, length)]:
        more = fill.get(name, torch.zeros(1, len(sequence), dtype=torch.long))
        inputs[name] = torch.cat([inputs[name], more], 1)
    logs = backend._model(**inputs).logits[0].log_softmax(-1)
    return float(sum(logs[length - 1 + i, token] for i, token in enumerate(sequence)).exp())


def test_ten_in_two_tokens_has_the_probability_of_both(folder: Path, requests, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    monkeypatch.setattr("t2i_feedback.mllm.local.MIN_PREFIX", 0.0)
    backend = LocalMllm("tiny", entry(folder), "")
    ((_, reply),) = next(backend.answers(requests[4:5], Decoding(8, ("10",))))
    spellings = backend._candidate_tokens(("10",))["10"]
    assert all(len(sequence) > 1 for sequence in spellings)
    assert reply.mass == pytest.approx(sum(probability(backend, requests[4], s) for s in spellings), rel=1e-3)


def test_a_batch_of_eight_writes_as_each_alone(folder: Path, requests) -> None:
    together = [reply.text for reply in ask(folder, 8, requests, Decoding(6))]
    assert [reply.text for reply in ask(folder, 1, requests, Decoding(6))] == together


def test_the_answer_depends_on_the_image_and_the_words(folder: Path, requests, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    first, second = requests[0], requests[3]
    asked = [first, Request(first.text, second.image), Request("no?", first.image), Request(first.text)]
    replies = ask(folder, 4, asked, Decoding(8, ("yes", "no")))
    assert len({round(reply.mass, 9) for reply in replies}) == 4


def test_every_family_goes_through_every_role(folder: Path, requests, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    images = [request.image for request in requests[:3]]
    with mllm.connect("tiny", entry(folder, max_new_tokens=4), tmp_path / "ledger.sqlite") as model:
        assert model.reading == "probability"
        assert [v.status for v in roles.validate(model, images, ["a house"] * 3)] == ["valid"] * 3
        assert len(roles.score_preference(model, images, "dark images")) == 3
        assert len(roles.enhance(model, ["a house"]) + roles.explain(model, images, ["a house"] * 3)) == 4


def test_weights_that_are_not_numbers_give_no_number(folder: Path, requests, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights[next(name for name in weights if "norm" in name and "vision" not in name)].fill_(torch.nan)
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    images = [request.image for request in requests[:3]]
    wanted = entry(tmp_path / "broken", max_new_tokens=4, templates="postcards")
    with mllm.connect("tiny", wanted, tmp_path / "ledger.sqlite") as model:
        outcomes = [
            *roles.validate(model, images, ["a house"] * 3),
            *roles.score_preference(model, images, "dark images"),
            *roles.enhance(model, ["a house"]),
        ]
    assert [outcome.status for outcome in outcomes] == ["unparseable"] * 7
    assert {outcome.raw for outcome in outcomes} == {
        "the model's probabilities are not finite in float32: the checkpoint itself is broken"
    }


# ------------------------------------------------------------------------------------------------ text alone


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllms.build_text_model(tmp_path_factory.mktemp("text") / "checkpoint")


def test_a_text_model_enhances(text_folder: Path, tmp_path: Path) -> None:
    wanted = entry(text_folder, images=False, max_new_tokens=4)
    with mllm.connect("small", wanted, tmp_path / "ledger.sqlite", images=False) as model:
        assert [outcome.status for outcome in roles.enhance(model, ["a red house", "a sun"])] == ["truncated"] * 2


def test_a_text_model_is_given_no_images(text_folder: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"mllms\.small: .* reads text alone and cannot look at images"),
        mllm.connect("small", entry(text_folder), tmp_path / "ledger.sqlite"),
    ):
        pass


def test_tags_of_thinking_stay_where_they_are_special_tokens(tmp_path: Path) -> None:
    """Without them nobody could tell thoughts from the answer."""
    folder = tiny_mllms.build_text_model(tmp_path / "checkpoint", "[THINK]", "[/THINK]")
    backend = LocalMllm("small", entry(folder), "")
    ids = backend._tokenizer.convert_tokens_to_ids
    spoken = backend._tokenizer.encode("rate 8", add_special_tokens=False)
    row = [ids("[THINK]"), *spoken, ids("[/THINK]"), *backend._tokenizer.encode("3"), ids("<|im_end|>")]
    assert backend._text(row) == "[THINK]rate 8[/THINK]3"
    assert backend._text([*spoken, *row[-2:]]) == "rate 83"


# ------------------------------------------------------------------------------------------------ one clear line


def test_a_preference_longer_than_the_context_is_one_line(llava_folder: Path, requests, tmp_path: Path) -> None:
    with (
        mllm.connect("tiny", entry(llava_folder), tmp_path / "ledger.sqlite") as model,
        pytest.raises(UserError, match=r"finetune\.preference: 400 words .* the model's context of 256"),
    ):
        roles.score_preference(model, [requests[0].image], "dark images " * 200)


def test_a_checkpoint_without_a_chat_template_is_one_line(text_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in text_folder.iterdir():
        if file.suffix != ".jinja":
            (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="has no chat template"):
        LocalMllm("small", entry(copy), "")


def test_a_package_that_is_not_installed_is_one_line_with_the_command(tmp_path: Path) -> None:
    wanted = LocalEntry(backend="local", model="package:no_such_package/model.gguf", images=False)
    with (
        pytest.raises(UserError, match=r"mllms\.smol: .* needs a package: `pip install no-such-package`"),
        mllm.connect("smol", wanted, tmp_path / "ledger.sqlite", images=False),
    ):
        pass
