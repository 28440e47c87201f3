"""What a checkpoint lacks or says of itself otherwise: read from wherever it stands, or said in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_mllms
import torch
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import Decoding, Reply, Request
from t2i_feedback.mllm.local import LocalMllm

torch.set_num_threads(1)
IMAGE = Image.new("RGB", (40, 32), (200, 10, 30))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllms.build_llava_next(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture
def changed(llava: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint whose JSON files are changed: file -> keys; a key of None is taken out."""

    def change(**files: dict[str, Any]) -> Path:
        folder = shutil.copytree(llava, tmp_path / "copy")
        for name, keys in files.items():
            path = folder / f"{name}.json"
            known = json.loads(path.read_text()) | keys
            path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))
        return folder

    return change


def backend(folder: Path, **values) -> LocalMllm:
    return LocalMllm("tiny", LocalEntry(backend="local", model=str(folder), device="cpu", **values), "")


def ends(local: LocalMllm) -> set[int]:
    return set(local._model.generation_config.eos_token_id)


def ask(local: LocalMllm, decoding: Decoding, *requests: Request) -> list[Reply]:
    found = dict(pair for group in local.answers(requests or [Request("a house?", IMAGE)], decoding) for pair in group)
    return [found[i] for i in sorted(found)]


def test_token_types_reach_a_model_that_takes_them(tmp_path: Path) -> None:
    """Gemma 3 looks at the tokens of an image in both directions, by their type."""
    local = backend(tiny_mllms.build_gemma3(tmp_path / "gemma"))
    inputs = local._inputs([Request("a house?", IMAGE)])
    assert inputs["token_type_ids"].sum() > 0
    with torch.inference_mode():
        with_types = local._model(**inputs).logits[0, -1]
        inputs.pop("token_type_ids")
        without = local._model(**inputs).logits[0, -1]
    assert not torch.allclose(with_types, without)
    (reply,) = ask(local, Decoding(4))
    assert reply.tokens_out == 4


def test_token_types_are_left_out_where_they_are_not_taken(llava: Path) -> None:
    local = backend(llava)
    local._tokenizer.model_input_names = [*local._tokenizer.model_input_names, "token_type_ids"]
    assert "token_type_ids" not in local._inputs([Request("a house?")])


def test_end_tokens_are_found_wherever_they_are_named(changed) -> None:
    folder = changed(generation_config={"eos_token_id": None}, config={"eos_token_id": None})
    assert 2 in ends(backend(folder))  # the tokenizer's
    for other in ([2, 7], 7):
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": other}))
        assert {2, 7} <= ends(backend(folder))


def test_a_model_without_any_end_token_writes_to_its_limit(tmp_path: Path) -> None:
    folder = tiny_mllms.build_text_model(tmp_path / "text")
    for name in ("config", "generation_config", "tokenizer_config"):
        path = folder / f"{name}.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in known.items() if not key.startswith("eos_token")}))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ eos_token }}", ""))
    (reply,) = ask(backend(folder, images=False), Decoding(4), Request("x"))
    assert (reply.status, reply.tokens_out) == ("truncated", 4)


def test_the_end_of_a_turn_in_the_chat_template_ends_an_answer(tmp_path: Path) -> None:
    folder = tiny_mllms.build_text_model(tmp_path / "text", "<|eot|>")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ eos_token }}", "<|eot|>"))
    local = backend(folder, images=False)
    end = local._tokenizer.convert_tokens_to_ids("<|eot|>")
    assert end in ends(local)
    written = [row for row in range(len(local._tokenizer)) if row != end]
    with torch.no_grad():  # a model that writes it at once: no other token has any weight, and this one's is positive
        state = local._model.model(**local._inputs([Request("x")])).last_hidden_state[0, -1]
        local._model.lm_head.weight[written] = 0.0
        local._model.lm_head.weight[end] = state
    (reply,) = ask(local, Decoding(6), Request("x"))
    assert (reply.status, reply.tokens_out) == ("valid", 1)


def test_a_chat_template_that_only_the_tokenizer_has(llava: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llava, tmp_path / "copy")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        backend(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    assert backend(folder)._render("x", True) == backend(llava)._render("x", True)


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
        {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
        {"return_dict_in_generate": True, "output_scores": True, "use_cache": False},
        {"min_new_tokens": 3, "max_length": 5, "stop_strings": ["a"]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"guidance_scale": 3.0},
    ],
)
@pytest.mark.slow
def test_a_checkpoints_own_generation_config_changes_no_answer(llava: Path, changed, own: dict[str, Any]) -> None:
    folder, request = changed(generation_config=own), Request("a red house?", IMAGE)
    for decoding in (Decoding(5), Decoding(5, ("yes", "no"))):
        plain, other = (ask(backend(where), decoding, request)[0] for where in (llava, folder))
        assert (other.status, other.text) == (plain.status, plain.text)
        assert other.probabilities == pytest.approx(plain.probabilities)


def test_an_image_that_the_processor_refuses_is_one_answer_and_not_the_end(tmp_path: Path) -> None:
    local = backend(tiny_mllms.build_qwen2_vl(tmp_path / "qwen"), batch_size=3)
    slit = Image.new("RGB", (4000, 2))
    first, second, third = ask(local, Decoding(4), *(Request("a house?", image) for image in (IMAGE, slit, IMAGE)))
    assert (second.status, second.probabilities) == ("unparseable", None)
    assert "refuses the image of 4000 x 2 pixels" in second.text
    assert first.status == third.status != "unparseable"
    assert first.text == third.text


def test_a_chat_template_that_fails_is_one_line(llava: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llava, tmp_path / "copy")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"mllms\.tiny: the chat template of .*roles must alternate"):
        ask(backend(folder), Decoding(4))
