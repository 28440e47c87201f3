"""A real, tiny LLaVA checkpoint: probabilities against plain teacher forcing, and whatever a user may type."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import checkpoint, roles
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import Decoding, Reply, Request
from t2i_feedback.mllm.local import LocalMllm, _Drawn

torch.set_num_threads(1)


def entry(folder: Path, **values) -> LocalEntry:
    return LocalEntry(backend="local", model=str(folder), device="cpu", templates="postcards", **values)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in noise]


@pytest.fixture(scope="module")
def local(llava_folder: Path) -> LocalMllm:
    return LocalMllm("tiny", entry(llava_folder, batch_size=4), "")


def ask(local: LocalMllm, requests: list[Request], decoding: Decoding) -> list[Reply]:
    found = dict(pair for group in local.answers(requests, decoding) for pair in group)
    return [found[i] for i in range(len(requests))]


@torch.inference_mode()
def log_probability(local: LocalMllm, request: Request, sequence: tuple[int, ...]) -> float:
    """Of the sequence as the answer's beginning: one forward pass over all of it, no cache, no padding."""
    inputs = local._inputs([request])
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([sequence])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logs = local._model(**inputs).logits[0].log_softmax(-1)
    return sum(float(logs[length - 1 + i, token]) for i, token in enumerate(sequence))


def test_masses_equal_teacher_forcing_over_every_spelling(local: LocalMllm, images, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.local.MIN_PREFIX", 0.0)
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    requests = [Request(text, image) for text, image in zip(("rate this", "a red house?", "x"), images, strict=False)]
    for candidates in (roles.SCORES, ("yes", "no")):
        spellings = local._candidate_tokens(candidates)
        if candidates == roles.SCORES:
            assert {len(sequence) for sequence in spellings["10"]} == {2, 3}
        for request, reply in zip(requests, ask(local, requests, Decoding(8, candidates)), strict=True):
            mass = {
                name: sum(np.exp(log_probability(local, request, sequence)) for sequence in some)
                for name, some in spellings.items()
            }
            if "10" in mass:
                mass["1"] -= mass["10"]
            assert reply.mass == pytest.approx(sum(mass.values()), rel=1e-4)
            expected = {name: value / sum(mass.values()) for name, value in mass.items()}
            assert reply.probabilities == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_unlikely_beginnings_change_little(local: LocalMllm, images, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    requests = [Request("rate this", image) for image in images]
    quick = ask(local, requests, Decoding(8, roles.SCORES))
    monkeypatch.setattr("t2i_feedback.mllm.local.MIN_PREFIX", 0.0)
    for a, b in zip(quick, ask(local, requests, Decoding(8, roles.SCORES)), strict=True):
        assert a.mass == pytest.approx(b.mass, abs=5e-3)


def test_capitals_and_spaces_are_spellings_of_one_candidate(local: LocalMllm) -> None:
    decoded = {local._tokenizer.decode(sequence) for sequence in local._candidate_tokens(("yes", "no"))["yes"]}
    assert decoded == {"yes", " yes", "Yes", " Yes"}


def test_candidates_that_are_hardly_among_the_answers_are_unparseable(local: LocalMllm, images) -> None:
    (reply,) = ask(local, [Request("x", images[0])], Decoding(8, ("%%%",)))
    assert reply.status == "unparseable"
    assert reply.probabilities is None


def test_batches_do_not_matter(local: LocalMllm, llava_folder: Path, images, monkeypatch) -> None:
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    requests = [Request("what? " * (i + 1), image) for i, image in enumerate(images)]
    alone = LocalMllm("tiny", entry(llava_folder, batch_size=1), "")
    together = ask(local, requests, Decoding(8, ("yes", "no")))
    for one, other in zip(ask(alone, requests, Decoding(8, ("yes", "no"))), together, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    texts = [reply.text for reply in ask(local, requests, Decoding(8))]
    assert [reply.text for reply in ask(alone, requests, Decoding(8))] == texts


def test_what_is_drawn_at_a_temperature_is_its_seeds_whatever_the_batch(local: LocalMllm, llava_folder: Path) -> None:
    requests = [Request("what? " * (i + 1), sample=100 + i) for i in range(6)]
    drawn = [reply.text for reply in ask(local, requests, Decoding(8, temperature=1.0))]
    assert drawn != [reply.text for reply in ask(local, requests, Decoding(8))]
    alone = LocalMllm("tiny", entry(llava_folder, batch_size=1), "")
    assert [reply.text for reply in ask(alone, requests[::-1], Decoding(8, temperature=1.0))] == drawn[::-1]
    same = [Request("what?", sample=seed) for seed in (1, 2, 3, 1)]
    texts = [reply.text for reply in ask(local, same, Decoding(8, temperature=1.0))]
    assert texts[0] == texts[3] and len(set(texts)) == 3


def test_tokens_are_drawn_as_often_as_their_probability_at_the_temperature_says() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).log().expand(4000, 3)
    for temperature, share in ((1.0, 2 / 3), (0.5, 4 / 5)):
        drawn = _Drawn(temperature, range(4000))(torch.zeros(4000, 1), logits).argmax(-1)
        assert float((drawn == 2).float().mean()) == pytest.approx(share, abs=0.03)
        assert not (drawn == 0).any()  # a token that is ruled out stays so


def test_an_answer_without_its_end_is_truncated(local: LocalMllm, images, monkeypatch) -> None:
    request = Request("what?", images[0])
    (cut,) = ask(local, [request], Decoding(5))
    assert cut.status == "truncated"
    assert cut.tokens_out == 5
    written = local._model.generate(**local._inputs([request]), max_new_tokens=5, do_sample=False)[0, -5:].tolist()
    monkeypatch.setattr(local._model.generation_config, "eos_token_id", written[4])
    (whole,) = ask(local, [request], Decoding(9))
    assert whole.status == "valid"
    assert whole.tokens_out == written.index(written[4]) + 1


def test_text_and_images_may_be_mixed(local: LocalMllm, images) -> None:
    requests = [Request("a"), Request("b", images[0]), Request("c"), Request("d", images[1])]
    replies = ask(local, requests, Decoding(4))
    assert [r.tokens_in - replies[0].tokens_in for r in replies] == [0, 5, 0, 5]  # four patches and a line break
    assert all(reply.seconds > 0 for reply in replies)


def test_a_request_beyond_the_context_is_truncated_and_its_neighbours_answered(local: LocalMllm, images) -> None:
    requests = [
        Request("rate this", images[0]),
        Request("a red house " * 130, images[1]),
        Request("x", images[2]),
    ]
    replies = ask(local, requests, Decoding(8))
    assert "context" in replies[1].text
    assert replies[1].status == "truncated"
    assert replies[0].tokens_out == replies[2].tokens_out == 8


@pytest.mark.parametrize(
    "text", ["", " ", "😀🏠" * 10, "<image> <|im_end|> {x}", "<image>" * 9, "\x00é\u202e", "%s {} \\"]
)
def test_whatever_is_typed_is_answered_or_typed(local: LocalMllm, images, text: str) -> None:
    for reply in ask(local, [Request(text, images[0]), Request(text)], Decoding(4)):
        assert reply.status in ("valid", "truncated")


def test_a_model_behind_the_ledger_is_not_loaded_twice(llava_folder: Path, images, tmp_path, monkeypatch) -> None:
    path = tmp_path / "ledger.sqlite"
    with mllm.connect("tiny", entry(llava_folder), path) as model:
        first = roles.score_preference(model, images, "dark images")

    def refuse(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(LocalMllm, "__init__", refuse)
    with mllm.connect("tiny", entry(llava_folder), path) as model:
        assert roles.score_preference(model, images, "dark images") == first


# ------------------------------------------------------------------------------------------------ no numbers


def with_weight(folder: Path, copy: Path, part: str, value: float) -> Path:
    """A copy of the checkpoint in which the first weight of this name holds `value`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights[next(name for name in weights if part in name)].view(-1)[0] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float16", "not finite in float16: try dtype bfloat16 or float32 (mllms.tiny.dtype)"),
        ("bfloat16", "not finite in bfloat16: try dtype float32 (mllms.tiny.dtype)"),
        ("float32", "not finite in float32: the checkpoint itself is broken"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_no_answer(
    llava_folder: Path, images, tmp_path: Path, value: float, dtype: str, remedy: str
) -> None:
    folder = with_weight(llava_folder, tmp_path / "broken", "multi_modal_projector", value)
    with mllm.connect("tiny", entry(folder, dtype=dtype, max_new_tokens=4), tmp_path / "ledger.sqlite") as model:
        verdicts = roles.validate(model, images, ["a house"] * 6)
        scores = roles.score_preference(model, images, "dark images")
        texts = roles.explain(model, images, ["a house"] * 6)
        prompts = roles.enhance(model, ["a house"])
        replies = model.choose([Request("?", image) for image in images], ("yes", "no"))
    assert [(v.status, v.p_yes) for v in verdicts] == [("unparseable", None)] * 6
    assert [(o.status, o.value) for o in scores + texts] == [("unparseable", None)] * 12
    assert all(remedy in outcome.raw for outcome in [*verdicts, *scores, *texts])
    assert all(reply.mass is None and reply.probabilities is None for reply in replies)
    assert [outcome.status for outcome in prompts] == ["truncated"]  # the projector has no part in it
    with pytest.raises(UserError, match=re.escape(remedy)):
        roles.check_invalid(verdicts, 0.5, "verdicts")


def test_a_image_that_overflows_leaves_its_neighbours_their_answers(
    local: LocalMllm, llava_folder: Path, images, monkeypatch
) -> None:
    """Also where only the second token of a candidate is not a number."""
    monkeypatch.setattr("t2i_feedback.mllm.base.MIN_MASS", 0.0)
    broken = LocalMllm("tiny", entry(llava_folder, batch_size=4), "")
    requests = [Request("rate this", image) for image in images[:4]]
    whole = ask(local, requests, Decoding(8, roles.SCORES))
    head = broken._model.get_output_embeddings()
    steps: list[int] = []

    def overflow(_module, _inputs, logits: torch.Tensor) -> torch.Tensor:
        steps.append(len(steps))
        logits[1 if len(steps) == 1 else 2] = torch.inf  # row 1 at the answer's first token, row 2 at every later one
        return logits

    hook = head.register_forward_hook(overflow)
    replies = ask(broken, requests, Decoding(8, roles.SCORES))
    hook.remove()
    assert len(steps) > 1
    assert [reply.status for reply in replies] == ["valid", "unparseable", "unparseable", "valid"]
    for i in (0, 3):
        assert replies[i].probabilities == pytest.approx(whole[i].probabilities, abs=1e-6)


def test_what_follows_an_answers_end_does_not_break_it(llava_folder: Path, images) -> None:
    local = LocalMllm("tiny", entry(llava_folder), "")
    requests = [Request("what?", image) for image in images[:2]]
    written = local._model.generate(**local._inputs(requests), max_new_tokens=5, do_sample=False)[:, -5:].tolist()
    end = next(token for token in written[0] if token not in written[1])
    local._model.generation_config.eos_token_id = end
    steps: list[int] = []

    def overflow(_module, _inputs, logits: torch.Tensor) -> torch.Tensor:
        steps.append(len(steps))
        if len(steps) > written[0].index(end) + 1:
            logits[:] = torch.nan
        return logits

    local._model.get_output_embeddings().register_forward_hook(overflow)
    replies = ask(local, requests, Decoding(7))
    assert [reply.status for reply in replies] == ["valid", "unparseable"]


def test_other_weights_are_another_model(llava_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in llava_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    first = checkpoint.revision("a", entry(llava_folder))
    assert checkpoint.revision("b", entry(copy)) == first
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, copy / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint.revision("b", entry(copy)) != first


def test_a_missing_model_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wanted = LocalEntry(backend="local", model="llava-hf/no-such-model")
    with pytest.raises(UserError) as raised:
        checkpoint.revision("llava", wanted)
    message = str(raised.value)
    assert "\n" not in message
    assert "mllms.llava: llava-hf/no-such-model" in message
    assert "hf download llava-hf/no-such-model --revision main" in message
    with pytest.raises(UserError, match=r"no/such/folder .*is neither a folder here nor a name"):
        checkpoint.revision("x", LocalEntry(backend="local", model="no/such/folder"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        checkpoint.revision("x", LocalEntry(backend="local", model=str(tmp_path / "empty")))


def test_a_device_that_is_not_there_and_a_broken_checkpoint_are_one_line(llava_folder: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"mllms\.tiny\.device: cuda"):
            LocalMllm("tiny", entry(llava_folder).model_copy(update={"device": "cuda"}), "")
        with pytest.raises(UserError, match="quantisation"):
            LocalMllm("tiny", entry(llava_folder, quantisation="4bit"), "")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"^mllms\.tiny: "):
        LocalMllm("tiny", entry(tmp_path), "")
