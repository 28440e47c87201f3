"""Whose opinion is asked: budgets, acquisition, the surrogate's part, and a person in the user's place."""

import csv
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import torch
from PIL import Image

from t2i_feedback.finetuning.acquisition import Budget, Scorer, Scores
from t2i_feedback.finetuning.advantages import advantages
from t2i_feedback.finetuning.scores import from_reward
from t2i_feedback.finetuning.trainer import Trainer
from t2i_feedback.foundation import paths, photometry
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.rewards import human
from t2i_feedback.stages import finetune

PROMPTS = ["a cat", "two dogs", "a red house"]
GROUPS = [prompt for prompt in ("a cat", "two dogs") for _ in range(8)]


def coloured(seed: int, count: int = 16) -> list[Image.Image]:
    """Plain colours with some noise, whose darkness a line through their embeddings can tell."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(20, 235, (count, 1, 1, 3)) + rng.integers(-20, 20, (count, 16, 16, 3))
    return [Image.fromarray(colour.astype(np.uint8)) for colour in colours]


def darkness(images: list[Image.Image], prompts: list[str]) -> list[float | None]:
    return [10 - float(np.asarray(image).mean()) / 25.5 for image in images]


def budget(acquisition: str = "random", questions: int = 6, surrogate_weight: float = 1.0, seed: int = 3) -> Budget:
    return Budget(questions, acquisition, surrogate_weight, True, photometry.embeddings, seed)


class Counting:
    """A user who remembers what was asked."""

    def __init__(self):
        self.asked: list[bytes] = []

    def __call__(self, images, prompts):
        self.asked += [image.tobytes() for image in images]
        return darkness(images, prompts)


def several(scorer: Scorer, epochs: int, first: int = 0) -> list[Scores]:
    return [scorer.scores(epoch, coloured(epoch), GROUPS) for epoch in range(first, first + epochs)]


def known(values: torch.Tensor) -> list[float | None]:
    """Scores as a reward gives them."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def answered(scores: Scores) -> list[bool]:
    """Which images have a score of the user's own."""
    return ((scores.weights == 1) & ~scores.values.isnan()).tolist()


def test_without_a_budget_every_image_is_asked_about():
    user = Counting()
    scores = Scorer(user).scores(0, coloured(0), GROUPS)
    assert scores.asked == len(user.asked) == 16
    assert answered(scores) == [True] * 16
    assert known(scores.values) == darkness(coloured(0), GROUPS)


@pytest.mark.parametrize("acquisition", ["random", "uncertainty"])
@pytest.mark.parametrize("questions", [1, 6, 16])
def test_no_more_questions_are_asked_than_the_budget_has(acquisition, questions):
    user = Counting()
    scorer = Scorer(user, budget=budget(acquisition, questions))
    for epoch in range(3):
        scores = scorer.scores(epoch, coloured(epoch), GROUPS)
        assert scores.asked == questions
        assert sum(answered(scores)) == questions
        assert len(user.asked) == (epoch + 1) * questions


def test_chosen_at_random_every_prompt_gets_as_many_questions():
    scores = Scorer(darkness, budget=budget()).scores(0, coloured(0), GROUPS)
    assert [sum(answered(scores)[:8]), sum(answered(scores)[8:])] == [3, 3]


def test_a_random_choice_depends_on_seed_and_epoch_alone():
    def chosen(seed: int, epoch: int, drawn: int) -> list[int]:
        scorer = Scorer(darkness, budget=budget(seed=seed, surrogate_weight=0.0))
        values = scorer.scores(epoch, coloured(drawn), GROUPS).values
        return (~values.isnan()).nonzero().flatten().tolist()

    assert chosen(3, 0, drawn=1) == chosen(3, 0, drawn=2)
    assert chosen(3, 0, drawn=1) != chosen(3, 1, drawn=1)
    assert chosen(3, 0, drawn=1) != chosen(4, 0, drawn=1)


@pytest.mark.parametrize("acquisition", ["random", "uncertainty"])
def test_what_is_most_telling_is_asked_about_first(acquisition):
    odd, alike = coloured(0, 1), [Image.new("RGB", (16, 16), (100 + i, 100, 100)) for i in range(7)]
    user = Counting()
    Scorer(user, budget=budget(acquisition, 8)).scores(0, [*alike[:4], *odd, *alike[4:]], ["a"] * 8)
    assert len(user.asked) == 8 and user.asked[0] == odd[0].tobytes()


def test_uncertainty_asks_about_the_odd_one_out():
    alike = [Image.new("RGB", (16, 16), (100 + i, 100, 100)) for i in range(7)]
    odd = coloured(0, 1)
    scores = Scorer(darkness, budget=budget("uncertainty", 1)).scores(0, [*alike[:4], *odd, *alike[4:]], ["a"] * 8)
    assert answered(scores).index(True) == 4


def test_with_a_surrogate_weight_of_0_only_images_asked_about_enter_the_update():
    for scores in several(Scorer(darkness, budget=budget(surrogate_weight=0.0)), 3):
        assert known(scores.values).count(None) == answered(scores).count(False) == 10


def test_the_surrogate_learns_to_answer_for_the_user_and_its_word_counts_as_far_as_it_is_sure():
    found = several(Scorer(darkness, budget=budget(surrogate_weight=0.5)), 6)
    errors = [scores.surrogate_error for scores in found]
    assert errors[0] is None  # it knew nothing to be wrong with
    assert errors[-1] < 0.5 < np.std(darkness(coloured(5), GROUPS))
    last = found[-1]
    others = [i for i, own in enumerate(answered(last)) if not own]
    truth = darkness(coloured(5), GROUPS)
    assert all(0.25 < last.weights[i] < 0.5 for i in others)
    assert max(abs(last.values[i] - truth[i]) for i in others) < 1.0


def test_what_uncertainty_asks_about_gives_truer_advantages_than_what_chance_does():
    """The cosine between the advantages that the update gets and those that all answers would give."""

    def likeness(acquisition: str) -> float:
        found = several(Scorer(darkness, budget=budget(acquisition, 6, surrogate_weight=0.0)), 5)
        cosines = []
        for epoch, scores in enumerate(found):
            rewards = from_reward(darkness(coloured(epoch), GROUPS))
            truth = advantages(rewards, GROUPS, per_prompt=True, clip=5).values
            mine = advantages(scores.values, GROUPS, per_prompt=True, clip=5, weights=scores.weights).values
            cosines.append(float(torch.nn.functional.cosine_similarity(truth, mine.nan_to_num(), dim=0)))
        return sum(cosines) / len(cosines)

    assert likeness("uncertainty") > likeness("random") + 0.05


def test_a_surrogate_that_cannot_tell_is_not_listened_to():
    rng = np.random.default_rng(0)
    scorer = Scorer(lambda images, prompts: list(rng.normal(size=len(images))), budget=budget())
    _, *later = several(scorer, 5)  # in the first epoch it cannot know how wrong it is
    assert sum(float(s.weights[~s.values.isnan()].sum()) - 6 for s in later) < 0.1 * 10 * len(later)


def test_a_image_without_a_valid_answer_is_masked_and_gets_no_surrogate_score():
    def shy(images, prompts):
        return [None, *darkness(images[1:], prompts[1:])]

    for scores in several(Scorer(shy, budget=budget()), 3):
        assert (scores.asked, scores.masked) == (6, 1)
        assert sum(answered(scores)) == 5
        assert None in known(scores.values)


def test_what_was_learnt_survives_a_checkpoint(tmp_path):
    for acquisition in ("random", "uncertainty"):
        whole = Scorer(darkness, budget=budget(acquisition))
        expected = several(whole, 4)
        first = Scorer(darkness, budget=budget(acquisition))
        several(first, 2)
        torch.save(first.state(), tmp_path / "state.pt")
        second = Scorer(darkness, budget=budget(acquisition))
        second.load(torch.load(tmp_path / "state.pt", weights_only=True))
        for found, wanted in zip(several(second, 2, first=2), expected[2:], strict=True):
            assert known(found.values) == known(wanted.values)
            assert torch.equal(found.weights, wanted.weights)
            assert found.surrogate_error == wanted.surrogate_error


def test_the_raw_means_of_each_reward_stand_beside_the_total():
    rewards = {"a": lambda images, prompts: [1.0, 3.0], "b": lambda images, prompts: [10.0, None]}
    scores = Scorer(rewards, lambda raw: raw["a"] - raw["b"]).scores(0, coloured(0, 2), ["x", "x"])
    assert known(scores.values) == [-9.0, None]
    assert scores.parts == {"a": 2.0, "b": 10.0}
    assert (scores.asked, scores.masked) == (2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_is_named_with_its_image(value):
    rewards = {"fine": lambda images, prompts: [1.0, 2.0], "broken": lambda images, prompts: [1.0, value]}
    with pytest.raises(UserError, match="epoch 4: a reward is not finite: broken of an image of “a dog”"):
        Scorer(rewards).scores(3, coloured(0, 2), ["a cat", "a dog"])


# ------------------------------------------------------------------------------------------------ with the trainer


@pytest.fixture
def make(checkpoint_folder):
    """A trainer with the stage's own feedback on a fresh copy of the tiny pipeline."""

    def build(folder: Path, **changes) -> Trainer:
        model = tiny_diffusion.model(name=str(checkpoint_folder))
        config = tiny_diffusion.finetune(**{"user": "pixels"} | changes)
        made = load_image_model(model)
        parameters = made.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, 5)
        folder.mkdir(exist_ok=True)
        scorer = finetune.scorer(config, model.pixels, 5, None, {}, folder)
        return Trainer(
            made, parameters, PROMPTS, scorer, photometry.means, model=model, finetune=config, seed=5, folder=folder
        )

    return build


@pytest.mark.parametrize("acquisition", ["random", "uncertainty"])
@pytest.mark.slow
def test_a_resumed_run_with_a_budget_equals_an_uninterrupted_one(make, tmp_path, acquisition):
    chosen = {"acquisition": acquisition, "feedback_budget": 4}
    whole = make(tmp_path / "whole", epochs=3, **chosen)
    expected = whole.run()
    make(tmp_path / "parts", epochs=1, **chosen).run()
    resumed = make(tmp_path / "parts", epochs=3, **chosen)
    assert resumed.run() == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, resumed.parameters, strict=True))
    assert [row.asked for row in expected] == [4] * 3
    assert expected[-1].surrogate_error is not None


def test_an_epoch_tells_the_raw_value_of_every_reward(make, tmp_path):
    weights = {"preference": 1.0, "brightness": -1.0, "jpeg_size": -0.5}
    row = make(tmp_path / "run", epochs=1, reward=weights).run()[0]
    assert set(row.parts) == set(weights)
    assert row.parts["brightness"] == pytest.approx(row.brightness)
    expected = row.parts["preference"] - row.parts["brightness"] / 25.5 - 0.5 * row.parts["jpeg_size"] / 0.0256
    assert row.reward_mean == pytest.approx(expected)
    assert row.numbers()["raw.jpeg_size"] == row.parts["jpeg_size"]


def test_a_constant_reward_is_named(make, tmp_path):
    trainer = make(tmp_path / "run", reward={"brightness": 1.0, "preference": 1.0})
    trainer.scorer.total = lambda raw: 3.0
    with pytest.raises(UserError, match="every image got the reward 3 from preference, brightness"):
        trainer.run()


def answer(sheet, scores: dict[str, float]) -> None:
    """Open the sheet, fill in the open rows of these images, save it with semicolons."""
    with sheet.path.open(encoding="utf-8-sig", newline="") as file:
        sample = file.readline()
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=max(",;", key=sample.count)))
    with sheet.path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image", "prompt", "score"], delimiter=";")
        writer.writeheader()
        for row in rows:
            score = scores.get(row["image"])
            writer.writerow(row | {"score": row["score"] or ("" if score is None else str(score).replace(".", ","))})


def trainer_waits(trainer: Trainer) -> bool:
    """Run it; whether it ended because a person is to be asked, with one line that says so."""
    try:
        trainer.run()
    except UserError as error:
        return (
            re.fullmatch(r"\d images await scores in \S*/scores\.csv .*; run again when done", str(error)) is not None
        )
    return False


@pytest.mark.slow
def test_a_person_stands_in_for_the_user(make, tmp_path, monkeypatch):
    """Every run ends where scores are missing and goes on from there; the result is that of a user who was at hand."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    setting = {"acquisition": "uncertainty", "feedback_budget": 4}
    expected = make(tmp_path / "oracle", **setting)
    history = expected.run()
    oracle = expected.scorer.rewards["preference"]
    sheet = human.sheet_of("dark images", paths.feedback())
    runs = 0
    while True:
        runs += 1
        trainer = make(tmp_path / "person", user="file", **setting)
        if not trainer_waits(trainer):
            break
        waiting = sheet.unscored(list(sheet.read()))
        with pytest.raises(UserError, match=f"{len(waiting)} images await scores"):
            human.check_answered(sheet, tmp_path / "person")  # a run that was started too early ends before it draws
        looked_at = {name: Image.open(sheet.folder / name) for name in waiting}
        said = dict(zip(looked_at, oracle(list(looked_at.values()), []), strict=True))
        if runs == 1:  # half of them first: the next run asks for the others
            said = dict(list(said.items())[:2])
        answer(sheet, said)
    assert runs == 4  # nothing there; half of epoch 1; epoch 2; done
    assert trainer.run() == history
    assert len(sheet.read()) == 8
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, expected.parameters, strict=True))


def test_rows_that_a_person_deleted_are_entered_again(make, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    setting = {"user": "file", "acquisition": "random", "feedback_budget": 4}
    sheet = human.sheet_of("dark images", paths.feedback())
    assert trainer_waits(make(tmp_path / "person", **setting))
    names = sheet.read().keys()
    sheet.path.unlink()
    human.check_answered(sheet, tmp_path / "person")  # nothing that a person could fill in: the run goes on
    assert trainer_waits(make(tmp_path / "person", **setting))
    assert sheet.read().keys() == names


def test_what_a_run_will_do_is_said_in_a_line():
    said = tiny_diffusion.finetune(acquisition="random", feedback_budget=4, user="pixels").plan({"preference": 1.0})
    assert said.startswith("2 epochs of 8 images, 4 by random rewarded by 1 x preference; ")
    assert said.endswith("the preference is photometry's: “dark images”")


# ------------------------------------------------------------------------------------------------ in two processes


def one_of_two(rank: int, folder: Path) -> None:
    """A process of a launch of two; leaves what it was told and how much it asked."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    user = Counting()
    found = several(Scorer(user, budget=budget("uncertainty")), 3)
    told = {
        "values": [known(s.values) for s in found],
        "weights": [s.weights.tolist() for s in found],
        "asked": len(user.asked),
    }
    (folder / f"{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_questions_and_are_told_the_same_as_one(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["values"], first["weights"]) == (second["values"], second["weights"])
    assert (first["asked"], second["asked"]) == (9, 9)  # three of six questions in each of three epochs
    alone = several(Scorer(darkness, budget=budget("uncertainty")), 3)
    assert first["values"] == [known(scores.values) for scores in alone]
