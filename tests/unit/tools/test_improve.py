"""make improve: a typed prompt through the loop, with the shipped models."""

import random
import shutil
from pathlib import Path

import pytest
import workplaces

from t2i_feedback import needs, params
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, LEVELS, SIZES, sample_scene
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import ImageRow, read_rows
from t2i_feedback.tools.improve import __main__ as improve
from t2i_feedback.tools.improve import page
from t2i_feedback.tools.improve.improving import Improver, prompt_id
from t2i_feedback.tools.improve.vocabulary import beyond

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    workplaces.enter(tmp_path, monkeypatch)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["improve", *arguments])
    improve.main()


def test_a_prompt_is_improved_and_every_round_is_told(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "a large red circle and a small yellow star at night", "--rounds", "2")
    printed = capsys.readouterr().out
    [folder] = (one for one in (workplace / "improved").iterdir() if (one / "index.html").exists())
    rows = read_rows(folder / "rounds.jsonl", ImageRow)
    assert [row.round for row in rows] == [1, 2]
    assert all((folder / row.image).is_file() and row.status == "valid" for row in rows)
    html = (folder / "index.html").read_text()
    assert "warning: the shipped models know drawn postcards alone and never saw: circle, star; " in printed
    assert "never saw: circle, star; " in html
    for row in rows:
        assert f"round {row.round}, {page.outcome(row)}" in printed
        assert f"Round {row.round}: {page.outcome(row)}" in html
        assert row.prompt in printed and row.prompt in html

    drawn = {row.image: (folder / row.image).stat().st_mtime_ns for row in rows}
    run(monkeypatch, "a large red circle and a small yellow star at night", "--rounds", "2")
    assert {row.image: (folder / row.image).stat().st_mtime_ns for row in rows} == drawn  # nothing is drawn twice


def test_a_checkpoint_that_was_trained_anew_has_a_folder_of_its_own(workplace: Path) -> None:
    checkpoint = shutil.copytree(REPOSITORY / "models/postcards/sd", workplace / "sd")
    p = params.load()
    mine = p.model_copy(update={"model": p.model.model_copy(update={"name": "sd"})})
    before = Improver(mine, ["a red house"], None).folder
    assert Improver(mine, ["a red house"], None).folder == before
    config = checkpoint / "unet/config.json"
    config.write_text(f"{config.read_text()} ")
    assert Improver(mine, ["a red house"], None).folder != before


def test_an_image_does_not_depend_on_the_other_prompts(workplace: Path) -> None:
    p = params.load().model_copy(update={"stage1": params.load().stage1.model_copy(update={"max_rounds": 1})})
    alone, company = Improver(p, ["a red house"], None), Improver(p, ["a green tree", "a red house"], None)
    [image] = [row.image for row in alone.run()]
    assert alone.folder != company.folder
    assert image in [row.image for row in company.run()]
    assert (alone.folder / image).read_bytes() == (company.folder / image).read_bytes()
    assert prompt_id("a red house") != prompt_id("a green tree")


def test_a_hostile_prompt_is_text_on_the_page(workplace: Path) -> None:
    hostile = "<script>alert(1)</script> ../../x"
    improver = Improver(params.load(), [hostile], None)
    assert improver.folder.parent == Path("improved") and ".." not in improver.folder.name
    row = ImageRow(caption_id=prompt_id(hostile), round=1, prompt='"><img src=x onerror=1>', image="images/x.png")
    html = page.write(improver, [row]).read_text()
    assert "<script" not in html and "<img src=x" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no prompt: make improve PROMPT="),
        (["  "], "no prompt"),
        (["a", "--prompts", "b.txt"], "give one of them"),
        (["--prompts", "nowhere.txt"], "PROMPTS: nowhere.txt cannot be read"),
        (["a", "--adapter", "nowhere"], "ADAPTER: nowhere holds no"),
        (["a", "--rounds", "0"], "ROUNDS: .0. is not"),
        (["a", "--mllm", "nobody"], "stage1.mllm: no entry of mllms is called 'nobody'"),
        (["a", "--mllm", "smollm2"], "reads text alone"),
        (["a", "--profile", "nothing"], "no profile is called"),
    ],
)
def test_bad_input_is_one_clear_error(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.delenv("PROMPT", raising=False)
    with pytest.raises(UserError, match=said):
        run(monkeypatch, *arguments)
    assert not (workplace / "improved").exists()


def test_prompts_of_a_file_are_read_once_each(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red  house\n\na tree\na red house\n", encoding="utf-8")
    assert improve.typed(None, file) == ["a red house", "a tree"]


def test_words_that_no_shipped_model_ever_saw_are_named_and_no_others() -> None:
    p, rng = params.load(), random.Random(0)
    known = [caption(sample_scene(rng), rng, level)[0] for level in LEVELS for _ in range(300)]
    assert beyond(known, p) == ""
    assert "never saw: dog, bicycle; " in beyond(["a Dog on a bicycle", "a red bicycle"], p)
    other = p.mllms[p.stage1.mllm].model_copy(update={"templates": "plain"})
    assert beyond(["a dog"], p.model_copy(update={"mllms": {**p.mllms, p.stage1.mllm: other}})) == ""


def test_the_page_on_data_names_the_whole_drawn_world() -> None:
    page = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8").partition("## The drawn world")[2]
    for word in (*KINDS, *COLOURS, *BACKGROUNDS, *SIZES, *COLUMNS):
        assert word in page, word


def test_models_that_cannot_be_fetched_are_one_line_and_those_that_nobody_asks_are_not_missed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "cached", lambda model, file, revision: False)
    monkeypatch.setattr(needs, "hub_answers", lambda seconds: False)
    (workplace / "profiles").symlink_to(REPOSITORY / "profiles")
    model = "stabilityai/stable-diffusion-xl-base-1.0"
    with pytest.raises(UserError, match=f"cannot be reached: {model}; with internet: hf download {model}$"):
        run(monkeypatch, "a", "--profile", "sdxl", "--mllm", "postcards")
    assert not (workplace / "improved").exists()


def test_a_model_is_looked_for_at_the_revision_that_params_name(monkeypatch: pytest.MonkeyPatch) -> None:
    p = params.load()
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(needs, "cached", lambda model, file, revision: asked.append((model, revision)))
    entry = p.mllms["llava15-7b"].model_copy(update={"revision": "v7"})
    mine = p.model_copy(
        update={
            "model": p.model.model_copy(update={"name": "owner/model", "revision": "v1"}),
            "mllms": {**p.mllms, "postcards": entry},
        }
    )
    fetched = needs.to_be_fetched(mine)
    assert asked == [("owner/model", "v1"), (entry.model, "v7")]
    assert fetched["owner/model"] == "hf download owner/model --revision v1"


def test_every_folder_that_is_not_here_is_told_at_once() -> None:
    p = params.load()
    entry = p.mllms["llava15-7b"].model_copy(update={"model": "models/no-llava"})
    mine = p.model_copy(
        update={
            "model": p.model.model_copy(update={"name": "models/none"}),
            "mllms": {**p.mllms, "postcards": entry},
        }
    )
    with pytest.raises(UserError, match=r"model\.name: there is no folder models/none; mllms\.postcards\.model: there"):
        needs.of_hub(mine)
