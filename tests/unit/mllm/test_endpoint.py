"""A model behind a server: what it is sent, what its answers mean, what it can do, and what it may cost."""

import base64
import io
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Server, entry, running, said
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import Request
from t2i_feedback.mllm.ledger import Ledger

pytestmark = pytest.mark.slow  # needs servers

IMAGE = Image.new("RGB", (3, 2), (200, 10, 30))
PRICES = {"usd_per_million_input_tokens": 10.0, "usd_per_million_output_tokens": 30.0}  # 0.0013 per call


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_the_request_holds_text_and_the_image_pixel_for_pixel(server: Server, ledger: Path) -> None:
    with mllm.connect("gpt", entry(server), ledger) as model:
        roles.validate(model, [IMAGE], ["a {fish}"])
    _, _, body = server.seen[0]
    image, text = body["messages"][0]["content"]
    assert "a {fish}" in text["text"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == IMAGE.tobytes()
    assert body["logprobs"] is True
    assert body["top_logprobs"] == 20
    assert body["temperature"] == 0


def test_probabilities_gather_all_spellings(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("Yes", logprobs=[{" Yes": 0.5, "yes": 0.1, "No": 0.2, "Maybe": 0.1}]))]
    with mllm.connect("gpt", entry(server), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
    assert verdict.p_yes == pytest.approx(0.6 / 0.8)


def test_ten_in_two_tokens_is_not_one(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("10", logprobs=[{"1": 0.8, "5": 0.2}, {"0": 0.75, "": 0.25}]))]
    with mllm.connect("gpt", entry(server), ledger) as model:
        (outcome,) = roles.score_preference(model, [IMAGE], "dark images")
    assert outcome.value == pytest.approx(10 * 0.6 + 1 * 0.2 + 5 * 0.2)


@pytest.mark.parametrize(
    ("options", "reading", "score"),
    [
        ({"9": 0.55, "1": 0.45}, "text", 9),  # 1, or the beginning of 10?
        ({"9": 0.5, "1": 0.3, "10": 0.2}, "probability", 9 * 0.5 + 1 * 0.3 + 10 * 0.2),
        ({"9": 0.98, "1": 0.02}, "probability", 9 * 0.98 + 1 * 0.02),
    ],
)
def test_a_one_that_was_not_written_is_no_one_where_ten_may_be_two_tokens(
    server: Server, ledger: Path, options: dict[str, float], reading: str, score: float
) -> None:
    server.script = [(200, {}, said("9", logprobs=[options]))]
    with mllm.connect("llava", entry(server), ledger) as model:
        (outcome,) = roles.score_preference(model, [IMAGE], "dark images")
    assert (outcome.reading, outcome.value) == (reading, pytest.approx(score))


@pytest.mark.parametrize("logprobs", [None, [{"Score": 0.99, "I": 0.01}, {":": 1.0}, {" 7": 0.9}]])
def test_without_probabilities_of_the_answer_it_is_parsed(server: Server, ledger: Path, logprobs) -> None:
    server.script = [(200, {}, said("Score: 7/10", logprobs=logprobs)), (200, {}, said("great"))]
    with mllm.connect("gpt", entry(server), ledger) as model:
        outcomes = roles.score_preference(model, [IMAGE, IMAGE.resize((4, 4))], "dark images")
    assert [outcome.value for outcome in outcomes] == [7, None]
    assert outcomes[1].status == "unparseable"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e308])
def test_a_logprob_that_is_no_number_gives_none(server: Server, ledger: Path, number: float) -> None:
    broken = said("Yes", logprobs=[{"Yes": 0.9, "No": 0.1}])
    broken["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = number
    server.script = [(200, {}, broken)]
    with mllm.connect("gpt", entry(server), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
    assert (verdict.status, verdict.p_yes) == ("unparseable", None)
    assert verdict.raw == "the model's probabilities are not finite; it said: Yes"


def test_what_is_impossible_by_its_logprob_is_not_broken(server: Server, ledger: Path) -> None:
    answer = said("Yes", logprobs=[{"Yes": 1.0, "No": 0.5}])
    answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] = float("-inf")
    server.script = [(200, {}, answer)]
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert roles.validate(model, [IMAGE], ["a fish"])[0].p_yes == 1.0


# ------------------------------------------------------------------------------------------------ thinking


@pytest.mark.parametrize(
    ("first", "text", "message"),
    [
        ({"<think>": 0.9, "8": 0.1}, "<think>An 8?</think>\n3", {}),
        ({"<": 0.9, "8": 0.1}, "<think>An 8?</think>\n3", {}),
        ({"8": 1.0}, "8 would be too much.</think>\n3", {}),  # the template began it
        ({"8": 1.0}, "3", {"reasoning_content": "8 would be too much."}),  # of which the logprobs tell too
        ({"8": 1.0}, "3", {"reasoning": "8 would be too much."}),
    ],
)
def test_no_probability_is_read_of_what_is_thought(server: Server, ledger: Path, first, text, message) -> None:
    server.script = [(200, {}, said(text, logprobs=[first, {"k": 1.0}], **message))]
    with mllm.connect("qwen3", entry(server), ledger) as model:
        (outcome,) = roles.score_preference(model, [IMAGE], "dark images")
    assert (outcome.status, outcome.value, outcome.reading) == ("valid", 3, "text")


def test_probabilities_behind_the_thinking_are_read(server: Server, ledger: Path) -> None:
    thought = [{"<think>": 0.9, "8": 0.1}, {"8": 0.9, "9": 0.1}, {"</think>": 0.9, "8": 0.1}]
    server.script = [(200, {}, said("<think>8</think>Yes", logprobs=[*thought, {"Yes": 0.75, "No": 0.25}]))]
    with mllm.connect("qwen3", entry(server), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
    assert (verdict.p_yes, verdict.reading, verdict.raw) == (pytest.approx(0.75), "probability", "Yes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<think>An 8? The score is 8", {}),
        (None, {"reasoning_content": "An 8? The score is 8"}),
        ("", {"reasoning": "An 8? The score is 8"}),
    ],
)
@pytest.mark.parametrize("reading", ["probability", "text"])
def test_thinking_that_uses_up_the_limit_is_truncated_and_says_what_to_raise(
    server: Server, ledger: Path, text: str | None, message: dict[str, str], reading: str
) -> None:
    logprobs = [{"8": 1.0}] if reading == "probability" else None
    server.script = [(200, {}, said(text, "length", logprobs, **message) | {"usage": None})]
    wanted = entry(server, reading=reading, max_new_tokens=40)
    with mllm.connect("qwen3", wanted, ledger) as model:
        (outcome,) = roles.score_preference(model, [IMAGE], "dark images")
    assert (outcome.status, outcome.value) == ("truncated", None)
    limit = {"probability": 16, "text": 40}[reading]
    assert outcome.raw.startswith(f"thinking used up the limit of {limit} tokens: ")
    assert {"probability": "reading: text", "text": "raise max_new_tokens"}[reading] in outcome.raw
    (row,) = Ledger(ledger).summary()
    assert row[9] >= 7  # it was written, and paid for


def test_thinking_goes_into_no_prompt_no_list_and_no_remark(server: Server, ledger: Path) -> None:
    thought = "<think>\na list; of what?\n</think>\n\n"
    answers = ["A red house", "a house", "There is no house"]
    script = [(200, {}, said(f"{thought}{text}")) for text in answers]
    server.script = [script[0], script[1], (200, {}, said("No")), *script[2:]]
    wanted = entry(server, reading="text")
    for _ in range(2):  # from the server, then from the ledger
        with mllm.connect("qwen3", wanted, ledger) as model:
            assert roles.enhance(model, ["a house"])[0].value == "A red house"
            (verdict,) = roles.validate(model, [IMAGE], ["a house"], questions=True)
            assert "think" not in f"{verdict.raw} {verdict.feedback}"
            assert verdict.p_yes == 0.0
            assert roles.explain(model, [IMAGE], ["a house"])[0].value == "There is no house"
    assert len(server.seen) == 4


# ------------------------------------------------------------------------------------------------ what a server can do


def test_what_a_server_can_do_is_found_out_once(server: Server, ledger: Path) -> None:
    for _ in range(2):
        with mllm.connect("gpt", entry(server), ledger) as model:
            assert model.reading == "probability"
    assert [sorted(body.keys() & {"logprobs", "response_format"}) for body in server.probes] == [
        ["logprobs"],
        ["response_format"],
    ]


def test_a_server_is_told_the_temperature_and_the_seed_of_each_prompt(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said(text)) for text in ("a red fish", "a blue fish")]
    with mllm.connect("sglang", entry(server), ledger) as model:
        roles.enhance(model, ["a fish", "a cat"], temperature=0.7, seeds=[5, 6])
    assert sorted((body["seed"], body["temperature"]) for _, _, body in server.seen) == [(5, 0.7), (6, 0.7)]


def test_a_reading_that_a_server_lacks_falls_back_and_is_named(server: Server, ledger: Path) -> None:
    server.gives_logprobs = False
    server.script = [(200, {}, said(text)) for text in ("yes", "No.", "Yes, all of it", "hm", "yes")]
    with mllm.connect("sglang", entry(server), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
    assert verdict.p_yes == 3 / 4
    assert verdict.reading == "samples"
    assert [body["seed"] for _, _, body in server.seen] == [0, 1, 2, 3, 4]
    assert {body["temperature"] for _, _, body in server.seen} == {1.0}
    with mllm.connect("sglang", entry(server, samples=1), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
    assert (verdict.p_yes, verdict.reading) == (1.0, "text")
    assert len(server.seen) == 6


def test_samples_of_scores_are_averaged_and_masked_when_most_are_not_valid(server: Server, ledger: Path) -> None:
    server.gives_logprobs = False
    server.script = [(200, {}, said(text)) for text in ("7", "8/10", "7.5", "7", "dark", "7", "hm", "hm", "9", "hm")]
    with mllm.connect("sglang", entry(server), ledger) as model:
        first = roles.score_preference(model, [IMAGE], "dark images")
        second = roles.score_preference(model, [IMAGE.resize((5, 5))], "dark images")
    assert first[0].value == pytest.approx((7 + 8 + 7.5 + 7) / 4)
    assert (second[0].status, second[0].value) == ("unparseable", None)


def test_logprobs_that_are_refused_are_not_asked_for_again(server: Server, ledger: Path) -> None:
    server.refuses_logprobs = True
    with mllm.connect("llamacpp", entry(server, samples=2), ledger) as model:
        roles.validate(model, [IMAGE], ["a fish"])
    asked = [body for body in server.probes if "logprobs" in body]
    assert ["reasoning_effort" in body for body in asked] == [False, True]  # would they come without thinking?
    assert ["logprobs" in body for _, _, body in server.seen] == [False, False]


def test_a_server_that_holds_to_a_schema_is_given_one(server: Server, ledger: Path) -> None:
    server.gives_logprobs, server.holds_to_schema = False, True
    server.script = [
        (200, {}, said('{"answer": "no", "reason": "the fish is missing"}')),
        (200, {}, said('{"score": 8}')),
    ]
    with mllm.connect("vllm", entry(server, samples=1), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
        (score,) = roles.score_preference(model, [IMAGE], "dark images")
    assert (verdict.p_yes, verdict.feedback) == (0.0, "the fish is missing")
    assert score.value == 8
    schemas = [body["response_format"]["json_schema"]["schema"] for _, _, body in server.seen]
    assert [list(schema["properties"]) for schema in schemas] == [["answer", "reason"], ["score"]]


def test_probabilities_that_are_demanded_and_not_given_are_one_line(server: Server, ledger: Path) -> None:
    server.gives_logprobs = False
    wanted = entry(server, reading="probability")
    with (
        pytest.raises(UserError, match=r"mllms\.sglang\.reading: m gives no probabilities"),
        mllm.connect("sglang", wanted, ledger),
    ):
        pass
    server.gives_logprobs = True  # another server took its place
    with mllm.connect("sglang", wanted, ledger) as model:
        assert model.reading == "probability"


def test_a_model_of_text_alone_may_enhance_and_nothing_else(server: Server, ledger: Path) -> None:
    server.takes_images = False
    refused = pytest.raises(UserError, match=r"mllms\.small: m reads text alone and cannot look at images")
    with refused, mllm.connect("small", entry(server), ledger):
        pass
    assert len(server.probes) == 4  # two with the image, one without it, one with a schema
    with refused, mllm.connect("small", entry(server, images=False), ledger):
        pass
    with mllm.connect("small", entry(server, images=False), ledger, images=False) as model:
        assert roles.enhance(model, ["a fish"])[0].value == "yes"
    assert len(server.seen) == 1
    server.takes_images = True  # its projector was loaded
    with mllm.connect("small", entry(server), ledger) as model:
        assert roles.validate(model, [IMAGE], ["a fish"])[0].status == "valid"


def test_what_a_server_can_do_is_not_concluded_from_its_break_down(server: Server, ledger: Path) -> None:
    server.broken = True
    with (
        pytest.raises(UserError, match=r"mllms\.gpt: .* cannot be asked now \(.*out of memory"),
        mllm.connect("gpt", entry(server), ledger),
    ):
        pass
    assert len(server.probes) == 1
    server.broken = False
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert model.reading == "probability"


@pytest.mark.parametrize("reading", ["text", "samples"])
def test_a_reading_that_is_chosen_is_held_to_a_schema_where_that_can_be(
    server: Server, ledger: Path, reading: str
) -> None:
    server.holds_to_schema = True
    server.script = [(200, {}, said('{"answer": "no", "reason": "the fish is missing"}'))] * 3
    with mllm.connect("gpt", entry(server, reading=reading, samples=3), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a fish"])
    assert (verdict.p_yes, verdict.reading) == (0.0, reading)
    assert all("response_format" in body and "logprobs" not in body for _, _, body in server.seen)


def test_the_papers_reading_is_a_parsed_yes_or_no_with_its_reason(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("No, the fish is red."))]
    with mllm.connect("gpt", entry(server, reading="text"), ledger) as model:
        (verdict,) = roles.validate(model, [IMAGE], ["a blue fish"])
    assert (verdict.p_yes, verdict.reading, verdict.feedback) == (0.0, "text", "the fish is red")
    assert "logprobs" not in server.seen[0][2]


# ------------------------------------------------------------------------------------------------ bounds


def test_the_budget_of_calls_stops_with_everything_kept(server: Server, ledger: Path) -> None:
    prompts = [f"a fish {i}" for i in range(10)]
    with (
        mllm.connect("gpt", entry(server, max_calls=5, concurrency=3), ledger) as model,
        pytest.raises(UserError, match=r"mllms\.gpt: the budget of max_calls = 5 is used up \(5 calls"),
    ):
        roles.enhance(model, prompts)
    assert len(server.probes) + len(server.seen) == 5
    with mllm.connect("gpt", entry(server, max_calls=12), ledger) as model:
        assert all(outcome.value == "yes" for outcome in roles.enhance(model, prompts))
    assert len(server.probes) + len(server.seen) == 12


def ask_in_another_process(wanted: EndpointEntry, ledger: Path, first: int) -> str:
    try:
        with mllm.connect("gpt", wanted, ledger) as model:
            roles.enhance(model, [f"a fish {i}" for i in range(first, first + 20)])
    except UserError as error:
        return str(error)
    return "no end"


def test_the_budget_counts_the_calls_of_every_process(server: Server, ledger: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        tasks = [(entry(server, max_calls=15, concurrency=4), ledger, first) for first in (0, 20)]
        endings = pool.starmap(ask_in_another_process, tasks)
    assert all("max_calls = 15" in ending for ending in endings)
    assert len(server.probes) + len(server.seen) == 15


def test_the_budget_of_dollars_stops(server: Server, ledger: Path) -> None:
    with (
        mllm.connect("gpt", entry(server, max_cost_usd=0.006, **PRICES), ledger) as model,
        pytest.raises(UserError, match=r"max_cost_usd = 0\.006 is used up"),
    ):
        roles.enhance(model, [f"a fish {i}" for i in range(10)])
    assert len(server.probes) == 2  # paid for too
    assert len(server.seen) == 3
    assert Ledger(ledger).summary()[0][11] == pytest.approx(3 * 0.0013)


def test_the_budget_of_dollars_stops_where_the_server_counts_no_tokens(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("a detailed prompt") | {"usage": None})] * 10
    with (
        mllm.connect("gpt", entry(server, max_cost_usd=0.01, **PRICES), ledger) as model,
        pytest.raises(UserError, match=r"max_cost_usd = 0\.01 is used up"),
    ):
        roles.enhance(model, [f"a fish {i} " * 50 for i in range(10)])
    assert 0 < len(server.seen) < 10


@pytest.mark.parametrize("image", [None, IMAGE])
def test_tokens_that_a_server_does_not_count_are_estimated(server: Server, ledger: Path, image) -> None:
    server.script = [(200, {}, said("nine long") | {"usage": None})]
    with mllm.connect("gpt", entry(server), ledger) as model:
        (reply,) = model.generate([Request("word " * 60, image)])
    assert (reply.tokens_in, reply.tokens_out) == (100 + (1000 if image else 0), 3)


def test_concurrency_is_bounded_and_the_order_kept(server: Server, ledger: Path) -> None:
    server.delay = 0.05
    server.script = [(200, {}, said(f"answer {i}")) for i in range(12)]
    with mllm.connect("gpt", entry(server, concurrency=3), ledger) as model:
        replies = model.generate([Request(f"question {i:02}") for i in range(12)])
    asked = [body["messages"][0]["content"][0]["text"] for _, _, body in server.seen]
    assert {asked[int(reply.text.split()[1])]: i for i, reply in enumerate(replies)} == {
        f"question {i:02}": i for i in range(12)
    }
    assert server.most_under_way == 3
