"""Servers that take other parameters than OpenAI's protocol has: found out once, told in one line, and worked with."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Server, entry, failed, running, said
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import dialects, roles
from t2i_feedback.mllm.base import Abilities, Request
from t2i_feedback.mllm.dialects import Dialect, adapted, fitted
from t2i_feedback.mllm.ledger import Ledger
from t2i_feedback.mllm.probing import VARIETY

pytestmark = pytest.mark.slow  # needs servers

IMAGE = Image.new("RGB", (3, 2), (200, 10, 30))
Body = dict[str, Any]
Answer = tuple[int, dict, Any]


class Particular(Server):
    """Refuses what `refuses` says of a request's body, else answers as any server does."""

    refuses: Callable[[Body], Any] = staticmethod(lambda body: None)
    status = 400

    def probe(self, body: Body) -> Answer:
        refusal = self.refuses(body)
        return (self.status, {}, refusal) if refusal else super().probe(body)

    def answer(self, body: Body) -> Answer | None:
        refusal = self.refuses(body)
        return (self.status, {}, refusal) if refusal else None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Particular]:
    import chat_server

    monkeypatch.setattr(chat_server, "Server", Particular)
    with running() as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def about(parameter: str, message: str) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", "param": parameter, "code": "unsupported"}}


def fastapi(name: str) -> dict:
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]}


def without(name: str, refusal: Any) -> Callable[[Body], Any]:
    return lambda body: refusal if name in body else None


def unbounded(body: Body) -> Any:
    text = json.dumps(body.get("response_format", ""))
    return (
        failed("invalid", "Invalid schema: 'minimum' is not permitted in response_format")
        if "minimum" in text
        else None
    )


CASES = [
    (
        without(
            "max_tokens",
            about("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        ),
        400,
        "max_completion_tokens",
    ),
    (without("max_tokens", fastapi("max_tokens")), 422, "max_completion_tokens"),
    (
        without(
            "temperature", about("temperature", "Unsupported value: 'temperature' does not support 0 with this model.")
        ),
        400,
        "no temperature",
    ),
    (
        without("temperature", failed("invalid", "temperature is deprecated for this model")),
        400,
        "no temperature",
    ),  # param: null
    (without("seed", fastapi("seed")), 422, "no seed"),
    (without("seed", failed("invalid", 'Unknown name "seed": Cannot find field.')), 400, "no seed"),
    (without("logprobs", failed("invalid", "Logprobs is not supported for this model")), 400, "no logprobs"),
    (
        without("logprobs", failed("forbidden", "You are not allowed to request logprobs from this model")),
        403,
        "no logprobs",
    ),
    (
        lambda body: (
            failed("bad", "Requested sample logprobs of 20, which is greater than max allowed: 5")
            if body.get("top_logprobs", 0) > 5
            else None
        ),
        400,
        "at most 5 logprobs",
    ),
    (
        lambda body: about("top_logprobs", "top_logprobs is too large") if body.get("top_logprobs", 0) > 5 else None,
        400,
        "at most 5 logprobs",
    ),
    (without("response_format", failed("invalid", "response_format is not supported")), 400, "no schema"),
]


@pytest.mark.parametrize(("refuses", "status", "words"), CASES)
def test_what_is_refused_is_renamed_made_smaller_or_dropped_and_told_in_one_line(
    server: Particular, ledger: Path, capsys, refuses, status: int, words: str
) -> None:
    server.refuses, server.status, server.holds_to_schema = refuses, status, True
    with mllm.connect("gpt", entry(server, samples=2), ledger) as model:
        (line,) = capsys.readouterr().out.splitlines()
        assert words in line and line.startswith("mllms.gpt: ")
        assert roles.enhance(model, ["a fish"])[0].status == "valid"
        assert roles.validate(model, [IMAGE], ["a fish"])[0].status == "valid"
    asked = len(server.probes)
    with mllm.connect("gpt", entry(server, samples=2), ledger) as model:  # another process, later
        assert roles.enhance(model, ["a house"])[0].status == "valid"
    assert len(server.probes) == asked
    assert capsys.readouterr().out == ""
    assert not any(server.refuses(body) for _, _, body in server.seen)


def test_a_model_that_refuses_all_of_it_can_be_asked(server: Particular, ledger: Path) -> None:
    def refuses(body: Body) -> Any:
        for name in ("max_tokens", "temperature", "seed", "logprobs", "response_format"):
            if name in body:
                return about(name, f"Unsupported parameter: '{name}'")
        return None

    server.refuses = refuses
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert roles.validate(model, [IMAGE], ["a fish"])[0].p_yes == 1.0
    assert all("max_completion_tokens" in body for _, _, body in server.seen)


def test_where_no_limit_may_be_sent_no_answer_is_cut(server: Particular, ledger: Path) -> None:
    def refuses(body: Body) -> Any:
        named = [name for name in ("max_tokens", "max_completion_tokens") if name in body]
        return about(named[0], f"Unsupported parameter: '{named[0]}'") if named else None

    server.refuses = refuses
    long = said("a long prompt") | {"usage": {"prompt_tokens": 1, "completion_tokens": 5000}}
    server.script = [(200, {}, long)]
    for _ in range(2):  # from the server, then from the ledger
        with mllm.connect("gpt", entry(server), ledger) as model:
            assert roles.enhance(model, ["a fish"])[0].value == "a long prompt"


def test_thinking_is_switched_off_where_that_brings_logprobs_back(server: Particular, ledger: Path) -> None:
    def refuses(body: Body) -> Any:
        if body.get("reasoning_effort") != "none" and ("logprobs" in body or "temperature" in body):
            return about("", "logprobs and temperature are not supported with reasoning models")
        return None

    server.refuses = refuses
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert model.reading == "probability"
        roles.enhance(model, ["a fish"])
    assert server.seen[-1][2]["reasoning_effort"] == "none"


@pytest.mark.parametrize("order", [("high", "none"), ("none", "high"), (None, "high"), ("high", None)])
def test_entries_of_one_model_do_not_depend_on_which_was_asked_first(
    server: Particular, ledger: Path, monkeypatch, order: tuple
) -> None:
    def probe(body: Body) -> Answer:
        if body.get("reasoning_effort") == "none":
            return 200, {}, said("Yes", logprobs=[{"Yes": 0.8, "No": 0.2}] if "logprobs" in body else None)
        refused = [name for name in ("temperature", "logprobs") if name in body]
        if refused:
            return 400, {}, about(refused[0], f"Unsupported parameter: '{refused[0]}' is not supported")
        return 200, {}, said("", reasoning="The user wants a prompt.")

    monkeypatch.setattr(server, "probe", probe)
    monkeypatch.setattr(server, "answer", probe)
    for reasoning in order:
        with mllm.connect("gpt", entry(server, reasoning=reasoning, max_new_tokens=2000), ledger) as model:
            (outcome,) = roles.enhance(model, ["a fish"])
            expected = ("text", "unparseable") if reasoning == "high" else ("probability", "valid")
            assert (model.reading, outcome.status) == expected
            assert server.seen[-1][2].get("temperature") == (None if reasoning == "high" else 0)


@pytest.mark.parametrize("told", [True, False])
def test_a_thinking_model_that_gets_more_room_or_less_is_asked_again(
    server: Particular, ledger: Path, monkeypatch, told: bool
) -> None:
    """Whether the entry tells it to think, or it was found out."""

    def thinking(body: Body) -> Answer:
        cut = body["max_tokens"] < 1000
        answer = said(None if cut else "yes", "length" if cut else "stop", reasoning_content="I think " * 20)
        answer["usage"]["completion_tokens"] = min(body["max_tokens"], 300)
        return 200, {}, answer

    monkeypatch.setattr(server, "answer", thinking)
    if not told:
        monkeypatch.setattr(server, "probe", thinking)
    given = []
    for limit in (96, 4096, 4096, 2048, 96):
        with mllm.connect(
            "qwen3", entry(server, reasoning="low" if told else None, max_new_tokens=limit), ledger
        ) as model:
            given.append(roles.explain(model, [IMAGE], ["a house"])[0].status)
    assert given == ["truncated", "valid", "valid", "valid", "truncated"]
    assert [body["max_tokens"] for _, _, body in server.seen] == [96, 4096, 2048]


def test_abilities_that_an_earlier_version_noted_are_found_out_anew(server: Particular, ledger: Path) -> None:
    wanted = entry(server)
    identity = wanted.access("gpt", Ledger(ledger)).identity
    Ledger(ledger).note_abilities(identity, Abilities(images=True, logprobs=True, schema=False))
    server.refuses = without("temperature", about("temperature", "Unsupported parameter"))
    with mllm.connect("gpt", wanted, ledger) as model:
        assert server.probes == []
        assert roles.enhance(model, ["a fish"])[0].status == "valid"
        assert model.abilities().dialect == "no temperature"
    assert len(server.seen) == 1


def test_thinking_counts_as_off_only_where_it_was_asked_off(server: Particular, ledger: Path) -> None:
    wanted = entry(server, reasoning="none", extra_body={"reasoning_effort": "high"})
    with mllm.connect("gpt", wanted, ledger) as model:
        server.script = [(200, {}, said("", reasoning="The user wants a prompt."))]
        assert roles.enhance(model, ["a fish"])[0].status == "unparseable"


def test_a_schema_with_bounds_that_is_refused_is_sent_without_them(server: Particular, ledger: Path) -> None:
    server.refuses, server.holds_to_schema, server.gives_logprobs = unbounded, True, False
    server.script = [(200, {}, said('{"score": 8}'))]
    with mllm.connect("gpt", entry(server, samples=1), ledger) as model:
        assert roles.score_preference(model, [IMAGE], "dark images")[0].value == 8
    assert "minimum" not in json.dumps(server.seen[-1][2]) and "response_format" in server.seen[-1][2]


def test_a_refusal_that_names_no_parameter_is_told(server: Particular, ledger: Path) -> None:
    server.refuses = lambda body: failed("invalid", "the moon is full")
    told = pytest.raises(UserError, match=r"answers no question for model m\. It said: .*the moon is full")
    with told, mllm.connect("gpt", entry(server), ledger):
        pass


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 2300 tokens.",
        "at most 1 image of response_format may have a seed",  # whatever it says, nothing of that helps
    ],
)
def test_a_request_that_fails_in_every_form_teaches_nothing(server: Particular, ledger: Path, words: str) -> None:
    server.holds_to_schema = True
    wanted = entry(server, reading="text")
    server.script = [(200, {}, said('{"answer": "yes", "reason": "it is"}'))] * 2
    large = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    with mllm.connect("vllm", wanted, ledger) as model:
        server.refuses = lambda body: failed("", words) if len(json.dumps(body["messages"])) > 9000 else None
        assert roles.validate(model, [large], ["a fish"])[0].status != "valid"
    for image in (IMAGE, IMAGE.resize((4, 4))):  # in this process, and later
        with mllm.connect("vllm", wanted, ledger) as model:
            assert roles.validate(model, [image], ["a fish"])[0].p_yes == 1.0
    assert all({"response_format", "seed"} <= body.keys() for _, _, body in server.seen[-2:])


def test_a_temperature_out_of_bounds_stops_and_is_named(server: Particular, ledger: Path) -> None:
    less = {
        "type": "less_than_equal",
        "loc": ["body", "temperature"],
        "msg": "Input should be less than or equal to 1.5",
    }
    server.refuses = lambda body: {"detail": [less]} if body["temperature"] > 1.5 else None
    server.status = 422
    stops = pytest.raises(UserError, match=r"mllms\.gpt: .* takes no temperature of 1\.8; lower stage1\.temperature")
    with mllm.connect("gpt", entry(server), ledger) as model, stops:
        roles.enhance(model, ["a fish", "a house"], temperature=1.8, seeds=[1, 2])
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert roles.enhance(model, ["a fish"], temperature=1.2, seeds=[1])[0].status == "valid"
    assert server.seen[-1][2]["temperature"] == 1.2


@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_is_found_out_late_is_noted_before_an_answer_is_kept(
    server: Particular, ledger: Path, concurrency: int
) -> None:
    wanted = entry(server, concurrency=concurrency)
    prompts = ["a fish", "a house", "a boat", "a cat"]
    with mllm.connect("gpt", wanted, ledger) as model:
        roles.enhance(model, ["a tree"])
        server.refuses = without("temperature", about("temperature", "Unsupported parameter"))
        first = roles.enhance(model, prompts)
        assert (len(first), model.abilities().dialect) == (4, "no temperature")
    asked = len(server.seen)
    with mllm.connect("gpt", wanted, ledger) as model:
        assert roles.enhance(model, prompts) == first
        assert model.abilities().dialect == "no temperature"
        assert len(server.seen) == asked
        roles.enhance(model, ["a tree"])  # which was asked at a temperature
    assert len(server.seen) == asked + 1


def test_a_reading_that_is_lost_is_replaced_by_the_next_best(server: Particular, ledger: Path) -> None:
    with mllm.connect("gpt", entry(server, samples=3), ledger) as model:
        roles.validate(model, [IMAGE], ["a fish"])
        server.refuses = without("logprobs", about("logprobs", "Unsupported parameter"))
        (verdict,) = roles.validate(model, [IMAGE], ["a house"])
        assert (verdict.reading, model.reading) == ("samples", "samples")


@pytest.mark.parametrize("steady", [True, False])
def test_samples_are_taken_only_where_temperature_is_heeded(server: Particular, ledger: Path, steady: bool) -> None:
    server.gives_logprobs, server.steady = False, steady
    with mllm.connect("claude", entry(server), ledger) as model:
        assert model.reading == ("text" if steady else "samples")
    assert sum(body["messages"][0]["content"][-1]["text"] == VARIETY for body in server.probes) == 3


def test_where_no_temperature_is_taken_that_varies_answers_none_are_sampled(server: Particular, ledger: Path) -> None:
    server.gives_logprobs = False
    wrong = failed("invalid", "temperature must be less than 1")
    server.refuses = lambda body: wrong if body.get("temperature", 0) >= 1 else None
    with mllm.connect("gpt", entry(server, samples=3), ledger) as model:
        assert model.reading == "text"
        assert roles.validate(model, [IMAGE], ["a fish"])[0].status == "valid"


def test_degenerate_probabilities_are_not_read(server: Particular, ledger: Path, capsys, monkeypatch) -> None:
    alone = said("Yes", logprobs=[{"Yes": 1.0, "No": 1e-300}])
    monkeypatch.setattr(server, "probe", lambda body: (200, {}, alone if "logprobs" in body else said("yes")))
    with mllm.connect("llamacpp", entry(server, samples=1), ledger) as model:
        assert model.reading == "text"
    assert "logprobs that say nothing" in capsys.readouterr().out


def test_reasoning_extra_body_and_detail_are_sent_and_belong_to_the_answers_key(
    server: Particular, ledger: Path
) -> None:
    more = {"chat_template_kwargs": {"enable_thinking": False}}
    for values in ({}, {"reasoning": "low"}, {"extra_body": more}, {"image_detail": "low"}):
        with mllm.connect("gpt", entry(server, **values), ledger) as model:
            roles.validate(model, [IMAGE], ["a fish"])
    bodies = [body for _, _, body in server.seen]
    assert len(bodies) == 4
    assert bodies[1]["reasoning_effort"] == "low" and bodies[1]["max_tokens"] == 96  # room to think
    assert bodies[2]["chat_template_kwargs"] == {"enable_thinking": False}
    assert bodies[3]["messages"][0]["content"][0]["image_url"]["detail"] == "low"


def test_images_are_shown_at_the_entrys_size(server: Particular, ledger: Path) -> None:
    with mllm.connect("gpt", entry(server, max_image_side=8), ledger) as model:
        model.generate([Request("what is it?", Image.new("RGB", (400, 100)))])
    import base64
    import io

    url = server.seen[0][2]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (8, 2)


# ------------------------------------------------------------------------------------------------ the model behind it


def test_another_model_behind_the_same_address_stops_with_one_line(server: Particular, ledger: Path) -> None:
    with mllm.connect("llama", entry(server), ledger) as model:
        roles.enhance(model, ["a fish"])
    server.script = [(200, {}, said("a house") | {"model": "another.gguf"})]
    with (
        mllm.connect("llama", entry(server), ledger) as model,
        pytest.raises(UserError, match=r"another model is behind .*another\.gguf.*`make forget ENTRY=llama`"),
    ):
        roles.enhance(model, ["a house"])
    assert Ledger(ledger).summary()[0][2] == 1  # the other one's answer is not kept


def test_the_servers_own_list_is_looked_at_too(server: Particular, ledger: Path) -> None:
    server.models = [{"id": "m", "root": "a.gguf", "created": 1, "meta": {"n_params": 7}}]
    with mllm.connect("llama", entry(server), ledger) as model:
        roles.enhance(model, ["a fish"])
    server.models = [{"id": "m", "root": "a.gguf", "created": 2, "meta": {"n_params": 7}}]
    with mllm.connect("llama", entry(server), ledger) as model:
        roles.enhance(model, ["a house"])
    server.models = [{"id": "m", "root": "b.gguf", "created": 3, "meta": {"n_params": 13}}]
    with mllm.connect("llama", entry(server), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].status == "valid"  # answered before, by the one that was there
        with pytest.raises(UserError, match=r"it lists 'id m, root b\.gguf, n_params 13'"):
            roles.enhance(model, ["a boat"])


def test_a_model_that_was_still_loading_is_no_other_one(server: Particular, ledger: Path, monkeypatch) -> None:
    loading = (503, {}, failed("", "Loading model"))
    server.models = [{"id": "m", "meta": None}]
    with monkeypatch.context() as patch:
        patch.setattr(server, "probe", lambda body: loading)
        with pytest.raises(UserError, match="cannot be asked now"), mllm.connect("llama", entry(server), ledger):
            pass
    assert Ledger(ledger).noted(f"{entry(server).account} lists") is None  # nothing was answered
    for meta in (None, {"n_params": 7, "size": 4}, None, {"n_params": 7, "n_vocab": 3}):
        server.models = [{"id": "m", "meta": meta}]
        with mllm.connect("llama", entry(server), ledger) as model:
            assert roles.enhance(model, [f"a fish {meta}"])[0].status == "valid"
    server.models = [{"id": "m", "meta": {"n_params": 13}}]
    with (
        mllm.connect("llama", entry(server), ledger) as model,
        pytest.raises(UserError, match=r"it lists 'id m, n_params 13', .* by 'id m, n_params 7, size 4, n_vocab 3'"),
    ):
        roles.enhance(model, ["a boat"])


def test_what_an_earlier_version_noted_of_the_list_is_replaced(server: Particular, ledger: Path) -> None:
    server.models = [{"id": "m", "root": "a.gguf"}]
    subject = f"{entry(server).account} lists"
    Ledger(ledger).note(subject, "id m, root a.gguf")
    with mllm.connect("llama", entry(server), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].status == "valid"
    assert json.loads(Ledger(ledger).noted(subject)) == {"id": "m", "root": "a.gguf"}


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("parameter", "message", "expected"),
    [
        ("max_tokens", "max_tokens is too large: 96000. This model supports at most 4096", None),  # the value is wrong
        ("", "something else", None),
        ("", "Invalid parameter: 'logprobs' must be less than or equal to 5", Dialect(logprobs=5)),
        ("top_logprobs", "must be between 0 and 3", Dialect(logprobs=3)),
        ("response_format", "not supported", Dialect(schema="none")),
        ("", "For 'integer' type, property \"maximum\" is not supported", Dialect(schema="none")),
        ("", "output_format.schema: minimum, maximum are not taken", Dialect(schema="none")),
        ("", "an image has more than the maximum of 4096 pixels", None),
        ("temperature", "Input should be less than or equal to 0.5", None),  # the value is wrong
        ("temperature", "Unsupported value: 0.7 is not supported, only the default", Dialect(temperature=False)),
    ],
)
def test_a_refusal_is_read_word_by_word(parameter: str, message: str, expected: Dialect | None) -> None:
    sent = {"max_tokens": 1, "temperature": 0.7, "seed": 0, "logprobs": True, "top_logprobs": 20, "response_format": {}}
    assert adapted(Dialect(), sent, parameter, message) == expected


def test_no_request_holds_both_names_of_the_limit() -> None:
    for limit in ("max_tokens", "max_completion_tokens", ""):
        sent = fitted({"max_tokens": 5}, Dialect(limit=limit))
        assert list(sent) == ([limit] if limit else [])
    assert dialects.first("https://api.openai.com/v1").limit == "max_completion_tokens"
    assert dialects.from_json('{"limit": 5}') is None
