"""A server that misbehaves: every failure has its type, nothing becomes a number, and nobody is asked too often."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from chat_server import DROP, Answer, Server, entry, failed, running, said
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.ledger import Ledger

pytestmark = pytest.mark.slow  # needs servers

IMAGE = Image.new("RGB", (3, 2), (200, 10, 30))
KEY = "sk-secret-1234567890"
PRICES = {"usd_per_million_input_tokens": 10.0, "usd_per_million_output_tokens": 30.0}
FLAGGED = {  # OpenRouter
    "error": {
        "code": 403,
        "message": 'm requires moderation. Your input was flagged for "violence". No credits were charged.',
        "metadata": {"reasons": ["violence"], "flagged_input": "a seed of violence"},
    }
}
HTML = "<html><body>Bad gateway</body></html>"


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, {}, said("A red", finish="length")), "truncated"),
        ((200, {}, said(None, refusal="I can't help with that")), "refusal"),
        ((200, {}, said("I'm sorry, but I can't assist with that.")), "refusal"),
        ((200, {}, said("", finish="content_filter")), "refusal"),
        ((400, {}, failed("content_policy_violation")), "refusal"),
        ((400, {}, failed("content_filter")), "refusal"),
        ((400, {}, failed("context_length_exceeded")), "truncated"),
        ((400, {}, failed("", "This model's maximum context length is 2048 tokens, you asked for 2300")), "truncated"),
        ((403, {}, FLAGGED), "refusal"),
        ((403, {}, failed("", "Content violates usage guidelines. Team: 1, API key ID: 2")), "refusal"),
        ((400, {}, failed("invalid_value", "image too small")), "transport"),
        ((500, {}, failed("server_error")), "transport"),
        ((429, {}, failed("rate_limit_exceeded")), "transport"),
        ((200, {}, said("")), "unparseable"),
        ((200, {}, said(None)), "unparseable"),
        ((200, {"Content-Type": "text/html"}, HTML), "transport"),
        ((200, {}, HTML), "transport"),
        ((502, {"Content-Type": "text/html"}, HTML), "transport"),
        ((200, {}, ""), "transport"),
        ((200, {}, '{"choices": [{"mess'), "transport"),
        ((200, {}, "[]"), "transport"),
        ((200, {}, "null"), "transport"),
        ((200, {}, {}), "transport"),
        ((200, {}, {"choices": []}), "transport"),
        ((200, {}, {"choices": [{}]}), "transport"),
        ((200, {}, {"choices": [{"message": {"content": 7}}]}), "transport"),
        ((200, {}, {"error": {"message": "out of memory"}}), "transport"),
        ((200, {}, DROP), "transport"),
    ],
)
def test_every_failure_has_its_type(server: Server, ledger: Path, answer: Answer, status: str) -> None:
    server.script = [answer]
    with mllm.connect("gpt", entry(server), ledger) as model:
        (outcome,) = roles.enhance(model, ["a fish"])
        assert (outcome.status, outcome.value) == (status, None)
        (again,) = roles.enhance(model, ["a fish"])
    assert again.status == ("valid" if status == "transport" else status)
    assert len(server.seen) == (2 if status == "transport" else 1)


@pytest.mark.parametrize(
    ("text", "status", "score"),
    [
        ("0", "unparseable", None),
        ("11", "unparseable", None),
        ("7.5", "valid", 7.5),
        ("seven", "unparseable", None),
        ("between 3 and 8", "unparseable", None),
        ("Score: 3-8", "unparseable", None),
        ("6, or maybe 9", "unparseable", None),
        ("Score: 6. Score: 9.", "unparseable", None),
        ("There are 3 houses.", "unparseable", None),
        ("85/100", "unparseable", None),
        ("I cannot rate images. 5", "refusal", None),
        ('{"score": 8', "unparseable", None),
        ('{"score": "8"}', "unparseable", None),
        ("", "unparseable", None),
        ("8", "valid", 8.0),
    ],
)
def test_no_text_becomes_a_score_by_accident(
    server: Server, ledger: Path, text: str, status: str, score: float | None
) -> None:
    server.script = [(200, {}, said(text))]
    with mllm.connect("gpt", entry(server, reading="text"), ledger) as model:
        (outcome,) = roles.score_preference(model, [IMAGE], "dark images")
    assert (outcome.status, outcome.value) == (status, score)
    (row,) = Ledger(ledger).summary()
    assert row[4:8] == (status == "refusal", status == "unparseable", 0, 0)


def broken(finish: str, message: str = "") -> dict:
    answer = said("A watercolour of a small red", finish)
    answer["choices"][0] |= {"error": {"code": 502, "message": message}} if message else {}
    return answer


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (broken("error", "Provider disconnected"), "transport"),  # OpenRouter
        (broken("stop", "Provider disconnected"), "transport"),
        (broken("insufficient_system_resource"), "transport"),  # DeepSeek
        (broken("abort"), "transport"),  # vLLM, SGLang
        (broken("network_error"), "transport"),  # Zhipu
        (broken("sensitive"), "refusal"),
        (broken("content_filter: SAFETY"), "refusal"),  # Gemini
        (broken("PROHIBITED_CONTENT"), "refusal"),
        (broken("refusal"), "refusal"),  # Anthropic
        (broken("model_context_window_exceeded"), "truncated"),
        (broken("model_length"), "truncated"),  # Mistral
        (broken("MAX_TOKENS"), "truncated"),
    ],
)
def test_half_an_answer_is_none(server: Server, ledger: Path, answer: dict, status: str) -> None:
    server.script = [(200, {}, answer)]
    with mllm.connect("gpt", entry(server, **PRICES), ledger) as model:
        (outcome,) = roles.enhance(model, ["a fish"])
        assert (outcome.status, outcome.value) == (status, None)
        choice = answer["choices"][0]
        assert status != "transport" or choice.get("error", {}).get("message", choice["finish_reason"]) in outcome.raw
        assert Ledger(ledger).summary()[0][11] > 0  # it was written, and paid for
        assert roles.enhance(model, ["a fish"])[0].value == ("yes" if status == "transport" else None)


@pytest.mark.parametrize(
    "finish", [None, "", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE", "endoftext", "tool_calls"]
)
def test_a_good_end_in_other_words_is_one(server: Server, ledger: Path, finish) -> None:
    server.script = [(200, {}, said("A red fish", finish))]
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].value == "A red fish"


def test_nothing_is_found_out_from_an_answer_that_broke_off(server: Server, ledger: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server, "probe", lambda body: (200, {}, broken("insufficient_system_resource")))
        with (
            pytest.raises(UserError, match=r"cannot be asked now \(the answer broke off \(insufficient_system"),
            mllm.connect("gpt", entry(server), ledger),
        ):
            pass
    with mllm.connect("gpt", entry(server), ledger) as model:
        assert model.reading == "probability"


def test_an_end_that_nobody_knows_is_named(server: Server, ledger: Path, monkeypatch) -> None:
    monkeypatch.setattr(server, "probe", lambda body: (200, {}, broken("other")))
    with pytest.raises(UserError, match=r"finish_reason 'other', which is not known here"):
        mllm.connect("gpt", entry(server), ledger).__enter__()


@pytest.mark.parametrize("before", range(60, 320, 12))
def test_no_part_of_a_key_that_a_server_repeats_is_kept(server: Server, ledger: Path, monkeypatch, before: int) -> None:
    """Words are cut after the key is taken out of them: nothing is left of one that stands where they end."""
    monkeypatch.setenv("A_KEY", "sk-0123456789abcdef0123456789abcdef")
    answer = broken("error") | {"error": None}
    answer["choices"][0]["error"] = {"message": f"{'x' * before} sk-0123456789abcdef0123456789abcdef"}
    server.script = [(200, {}, answer), (200, {}, {"error": answer["choices"][0]["error"]})]
    with mllm.connect("gpt", entry(server, api_key_env="A_KEY"), ledger) as model:
        told = [outcome.raw for outcome in roles.enhance(model, ["a fish", "a house"])]
    assert all("xxx" in one and "0123" not in one for one in told)


def test_a_cut_answer_is_no_score(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("1", finish="length"))]  # of 10?
    with mllm.connect("gpt", entry(server, reading="text"), ledger) as model:
        (outcome,) = roles.score_preference(model, [IMAGE], "dark images")
    assert (outcome.status, outcome.value) == ("truncated", None)


# ------------------------------------------------------------------------------------------------ retries


@pytest.mark.parametrize(
    "answer", [(429, {}, failed("rate_limit")), (500, {}, failed("error")), (503, {}, HTML), (200, {}, DROP)]
)
def test_what_may_pass_is_tried_again_so_often_and_no_oftener(server: Server, ledger: Path, answer: Answer) -> None:
    with mllm.connect("gpt", entry(server, retries=2), ledger) as model:
        server.script = [answer] * 2
        assert roles.enhance(model, ["a fish"])[0].value == "yes"
        assert len(server.seen) == 3
        server.script = [answer] * 4
        assert roles.enhance(model, ["a house"])[0].status == "transport"
    assert len(server.seen) == 6


def test_retry_after_is_obeyed_and_without_it_the_pauses_grow(server: Server, ledger: Path) -> None:
    server.script = [(429, {"Retry-After": "1.2"}, failed("rate_limit")), *[(429, {}, failed("rate_limit"))] * 2]
    with mllm.connect("gpt", entry(server, retries=3), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].value == "yes"
    moments = [moment for moment, *_ in server.seen]
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert 1.2 <= pauses[0] < 2
    assert 0.7 < pauses[1] <= 1.3  # 1 s less up to a quarter of jitter
    assert 1.4 < pauses[2] <= 2.3


def test_the_same_pause_is_not_kept_by_all(server: Server, ledger: Path) -> None:
    server.script = [(429, {}, failed("rate_limit"))] * 6
    with mllm.connect("gpt", entry(server, retries=1, concurrency=6), ledger) as model:
        roles.enhance(model, [f"a fish {i}" for i in range(6)])
    again = sorted(moment for moment, *_ in server.seen)[6:]
    assert again[-1] - again[0] > 0.01


def test_a_server_that_wants_too_long_a_pause_is_not_asked_again(server: Server, ledger: Path) -> None:
    server.script = [(429, {"Retry-After": "3600"}, failed("rate_limit"))]
    with mllm.connect("gpt", entry(server, retries=3), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].status == "transport"
    assert len(server.seen) == 1


def test_a_server_that_hangs_is_left_after_the_time_out_and_paid_for_each_try(server: Server, ledger: Path) -> None:
    wanted = entry(server, timeout_seconds=0.2, retries=1, **PRICES)
    with mllm.connect("gpt", wanted, ledger) as model:
        calls, cost = Ledger(ledger).spent(wanted.account)
        server.delay = 1.0
        assert roles.enhance(model, ["a fish"])[0].status == "transport"
    assert len(server.seen) == 2
    (row,) = Ledger(ledger).summary()
    assert row[8] > 2 and row[11] > 0  # tokens that it may have read, twice
    spent = Ledger(ledger).spent(wanted.account)
    assert spent == (calls + 2, pytest.approx(cost + row[11]))


@pytest.mark.parametrize("answer", [(200, {}, DROP), (429, {}, failed("rate_limit"))])
def test_each_try_takes_from_the_budget_of_calls(server: Server, ledger: Path, answer: Answer) -> None:
    server.script = [answer] * 9
    wanted = entry(server, retries=3, max_calls=5)
    with mllm.connect("gpt", wanted, ledger) as model, pytest.raises(UserError, match="max_calls = 5 is used up"):
        roles.enhance(model, ["a fish", "a house"])
    assert len(server.probes) + len(server.seen) == 5


def test_an_attempt_that_reached_nobody_costs_nothing(server: Server, ledger: Path) -> None:
    wanted = entry(server, retries=1, **PRICES)
    with mllm.connect("gpt", wanted, ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].status == "valid"
        before = Ledger(ledger).spent(wanted.account)
        server.shutdown()
        server.server_close()
        assert roles.enhance(model, ["a house"])[0].status == "transport"
    assert Ledger(ledger).spent(wanted.account) == before


# ------------------------------------------------------------------------------------------------ one clear line


def test_a_server_that_is_not_there_is_said_with_how_to_start_one(server: Server, ledger: Path) -> None:
    wanted = entry(server, base_url="http://127.0.0.1:9/v1", model="llava-hf/llava-1.5-7b-hf")
    with pytest.raises(UserError) as raised, mllm.connect("llava", wanted, ledger):
        pass
    message = str(raised.value)
    assert "\n" not in message
    assert "mllms.llava: nobody answers at http://127.0.0.1:9/v1" in message
    assert "`vllm serve llava-hf/llava-1.5-7b-hf --port 9`" in message


def test_a_hosted_server_that_is_not_reached_is_no_reason_to_start_one(server: Server, ledger: Path) -> None:
    wanted = entry(server, base_url="https://nobody.invalid/v1")
    with pytest.raises(UserError) as raised, mllm.connect("gpt", wanted, ledger):
        pass
    message = str(raised.value)
    assert "mllms.gpt: nobody answers at https://nobody.invalid/v1. Check the network" in message
    assert "serve" not in message


def test_the_port_of_a_local_server_is_its_schemes_where_none_is_given(server: Server, ledger: Path) -> None:
    with (
        pytest.raises(UserError, match=r"`vllm serve m --port 443`"),
        mllm.connect("vllm", entry(server, base_url="https://localhost/v1"), ledger),
    ):
        pass


def test_a_server_that_hangs_at_first_is_one_line(server: Server, ledger: Path) -> None:
    server.delay = 1.0
    wanted = entry(server, timeout_seconds=0.2)
    with pytest.raises(UserError, match=r"mllms\.gpt: .* cannot be asked now"), mllm.connect("gpt", wanted, ledger):
        pass
    assert len(server.probes) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once_and_keeps_the_key_to_itself(
    server: Server, ledger: Path, monkeypatch, caplog, status: int
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("SOME_KEY", KEY)
    server.script = [(200, {}, said("one")), *[(status, {}, failed("invalid", f"bad key {KEY}"))] * 50]
    with (
        mllm.connect("gpt", entry(server, api_key_env="SOME_KEY", retries=3), ledger) as model,
        pytest.raises(UserError) as raised,
    ):
        roles.enhance(model, [f"a fish {i}" for i in range(50)])
    assert "mllms.gpt" in str(raised.value)
    assert "SOME_KEY" in str(raised.value)
    assert KEY not in str(raised.value) + caplog.text
    assert server.seen[0][1]["authorization"] == f"Bearer {KEY}"
    assert len(server.seen) == 2
    assert KEY.encode() not in b"".join(file.read_bytes() for file in ledger.parent.iterdir())
    assert Ledger(ledger).summary()[0][2] == 1


@pytest.mark.parametrize(
    "answer",
    [(402, {}, failed("invalid_request_error", "Insufficient Balance")), (429, {}, failed("insufficient_quota"))],
)
def test_a_used_up_credit_stops_at_once_and_is_called_so(server: Server, ledger: Path, answer: Answer) -> None:
    server.script = [(200, {}, said("one")), *[answer] * 9]
    with (
        mllm.connect("gpt", entry(server), ledger) as model,
        pytest.raises(UserError, match=r"answered 4\d\d for model m; there is no credit left: add some and run"),
    ):
        roles.enhance(model, [f"a fish {i}" for i in range(10)])
    assert len(server.seen) == 2


def test_a_flagged_account_is_no_refusal_of_one_request(server: Server, ledger: Path) -> None:
    server.script = [(403, {}, failed("", "Your account was flagged for violating our usage policies"))] * 2
    with mllm.connect("gpt", entry(server), ledger) as model, pytest.raises(UserError, match="answered 403"):
        roles.enhance(model, ["a fish", "a house"])


@pytest.mark.parametrize("before", [0, 290])
def test_no_part_of_a_long_key_is_told_or_kept(server: Server, ledger: Path, monkeypatch, before: int) -> None:
    key = "sk-" + "".join(f"{i:05}" for i in range(80))
    monkeypatch.setenv("SOME_KEY", key)
    echoed = failed("invalid", "x" * before + key)
    server.script = [(400, {}, echoed), (401, {}, echoed)]
    with (
        mllm.connect("gpt", entry(server, api_key_env="SOME_KEY"), ledger) as model,
        pytest.raises(UserError) as raised,
    ):
        roles.enhance(model, ["a fish", "a house"])
    assert key[:8] not in str(raised.value)
    assert key[:8].encode() not in b"".join(file.read_bytes() for file in ledger.parent.iterdir())


@pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY}é", f"{KEY}\x7f"])
def test_a_key_that_no_header_can_hold_is_said_before_any_call(
    server: Server, ledger: Path, monkeypatch, key: str
) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with (
        pytest.raises(UserError, match=r"mllms\.gpt: the environment variable SOME_KEY holds what cannot") as raised,
        mllm.connect("gpt", entry(server, api_key_env="SOME_KEY"), ledger),
    ):
        pass
    assert KEY not in str(raised.value)
    assert server.probes == server.seen == []


def test_a_reason_is_kept_without_the_key(server: Server, ledger: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-12345")
    server.script = [(200, {}, '{"your key": "sk-12345"')]  # no JSON
    with mllm.connect("gpt", entry(server, api_key_env="SOME_KEY"), ledger) as model:
        (outcome,) = roles.enhance(model, ["a fish"])
    assert outcome.status == "transport"
    assert "[key]" in outcome.raw
    assert "sk-12345" not in outcome.raw


@pytest.mark.parametrize("value", [None, " "])
def test_a_missing_key_is_said_before_any_call(server: Server, ledger: Path, monkeypatch, value: str | None) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value:
        monkeypatch.setenv("SOME_KEY", value)
    with (
        pytest.raises(UserError, match=r"mllms\.gpt: the environment variable SOME_KEY is not set"),
        mllm.connect("gpt", entry(server, api_key_env="SOME_KEY"), ledger),
    ):
        pass
    assert server.probes == server.seen == []


def test_what_is_answered_needs_no_server_and_no_key(server: Server, ledger: Path, monkeypatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with mllm.connect("gpt", entry(server, api_key_env="SOME_KEY"), ledger) as model:
        first = roles.validate(model, [IMAGE], ["a fish"])
    monkeypatch.delenv("SOME_KEY")
    server.server_close()
    with mllm.connect("gpt", entry(server, api_key_env="SOME_KEY"), ledger) as model:
        assert roles.validate(model, [IMAGE], ["a fish"]) == first


def test_a_preference_longer_than_the_context_is_one_line(server: Server, ledger: Path) -> None:
    server.script = [(400, {}, failed("context_length_exceeded", "maximum context length is 4096 tokens"))] * 2
    images = [IMAGE, IMAGE.resize((4, 4))]
    with (
        mllm.connect("gpt", entry(server), ledger) as model,
        pytest.raises(UserError, match=r"finetune\.preference: 900 words are more than the judge can take in"),
    ):
        roles.score_preference(model, images, "dark images " * 450)


# ------------------------------------------------------------------------------------------------ early and quiet


def test_a_judge_that_nobody_can_read_is_not_asked_everything(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("hm"))] * 200
    limit = ("finetune.max_invalid_fraction", 0.1)
    images = [Image.new("RGB", (3, i + 1)) for i in range(200)]
    with (
        mllm.connect("gpt", entry(server, reading="text"), ledger, max_invalid=limit) as model,
        pytest.raises(
            UserError, match=r"mllms\.gpt as judge: 40 of the first 40 answers \(of 200\).* 'hm' \(40x\)"
        ) as one,
    ):
        roles.score_preference(model, images, "dark images")
    assert "finetune.max_invalid_fraction = 0.1" in str(one.value)
    assert len(server.seen) == 40


def test_whoever_allows_invalid_answers_gets_them(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("hm"))] * 60
    images = [Image.new("RGB", (3, i + 1)) for i in range(60)]
    with mllm.connect("gpt", entry(server, reading="text"), ledger, max_invalid=("x", 1.0)) as model:
        assert {one.status for one in roles.score_preference(model, images, "dark images")} == {"unparseable"}


def test_no_request_is_a_line_of_the_log(server: Server, ledger: Path, caplog) -> None:
    with mllm.connect("gpt", entry(server), ledger) as model:
        caplog.clear()
        caplog.set_level("INFO")
        roles.enhance(model, ["a fish", "a house"])
    assert [record.getMessage() for record in caplog.records if record.levelname == "INFO"] == []


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_this_machines_own_addresses_are_asked_through_no_proxy(
    server: Server, ledger: Path, monkeypatch, variable: str, proxy: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        with mllm.connect("gpt", entry(server, base_url=url), ledger) as model:
            assert roles.enhance(model, ["a fish"])[0].status == "valid"


@pytest.mark.parametrize(
    ("proxy", "said_of_it"),
    [
        ("socks5://me:secret@127.0.0.1:9", r"cannot be asked through the proxy socks5://127\.0\.0\.1:9"),
        ("http://me:secret@127.0.0.1:9", r"nobody answers at .* through the proxy http://127\.0\.0\.1:9"),
        ("me:secret@127.0.0.1:9", r"nobody answers at .* through the proxy http://127\.0\.0\.1:9"),
        ("http://me:secret@127.0.0.1:99999", r"through the proxy http://127\.0\.0\.1:99999"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line_that_names_it(
    server: Server, ledger: Path, monkeypatch, proxy: str, said_of_it: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    wanted = entry(server, base_url="http://gpu.example.invalid/v1")
    with pytest.raises(UserError, match=said_of_it) as raised, mllm.connect("gpt", wanted, ledger):
        pass
    assert "secret" not in str(raised.value) and "NO_PROXY" in str(raised.value)
