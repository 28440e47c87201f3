"""finetune: DDPO. The judge plays a user with a preference, its scores are the rewards, the adapter learns."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_feedback import params
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CaptionRow, EpochRow, as_typed, read_rows, write_rows
from t2i_feedback.foundation.traits import TRAITS
from t2i_feedback.rewards import human, registry
from t2i_feedback.rewards.base import Context

if TYPE_CHECKING:
    from t2i_feedback.finetuning.acquisition import Feedback
    from t2i_feedback.mllm.base import Mllm


def main() -> None:
    p = params.load()
    config = p.finetune
    captions = read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)
    if config.require_calibrated and config.user == "mllm" and "preference" in registry.used(config.reward):
        require_calibrated(p)
    print(f"finetune: {plan(config)}", flush=True)
    from t2i_feedback.finetuning.trainer import HISTORY, Trainer
    from t2i_feedback.foundation import photometry
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.stable_diffusion import add_adapter, load_pipeline, load_tokenizer, save_adapter
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.enhancing import Enhancer
    from t2i_feedback.rewards.mllm import preference
    from t2i_feedback.tracking import runs

    judge, held_out = p.mllms[config.judge], p.mllms[p.evaluate.judge]
    inputs = [paths.FINETUNE_CAPTIONS, *workspace.weights(p.model.name, judge.model, held_out.model)]
    settings: list[workspace.Setting] = [p.seed, p.model, config, str(decisive(judge)), str(decisive(held_out))]
    with ExitStack() as stack:
        work = stack.enter_context(workspace.partial("finetune", workspace.digest(settings, inputs)))
        if config.user == "file":
            human.check_answered(human.sheet_of(config.preference), work)
        asked = config.enhance_prompts or registry.questions(config.reward, config.user)
        user = stack.enter_context(shared.connect(config.judge, judge)) if asked else None
        second_user = stack.enter_context(shared.connect(p.evaluate.judge, held_out))
        run = stack.enter_context(runs.stage_run("finetune"))
        read = f"scores are read by {user.reading}, " if user else ""
        print(f"finetune: {read}held-out scores by {second_user.reading}", flush=True)
        if user and config.enhance_prompts:
            prompts = Enhancer(
                user, lambda texts: tokens_lost(load_tokenizer(p.model), texts), config.max_invalid_fraction
            ).first_prompts(captions)
        else:
            prompts = as_typed(captions)
        pipe = load_pipeline(p.model, training=True)
        parameters = add_adapter(pipe.unet, config.lora_rank, config.lora_alpha, config.lora_targets, p.seed)
        trainer = Trainer(
            pipe,
            parameters,
            [row.prompt for row in prompts],
            feedback(
                config,
                size=p.model.size,
                seed=p.seed,
                judge=user.own if user else None,
                captions={made.prompt: row.caption for made, row in zip(prompts, captions, strict=True)},
                folder=work,
            ),
            photometry.means,
            model=p.model,
            finetune=config,
            seed=p.seed,
            folder=work,
            held_out=preference(second_user.own, config.preference),  # only watched: it stops nothing
        )

        ended = time.monotonic()

        def report(row: EpochRow) -> None:
            nonlocal ended
            began, ended = ended, time.monotonic()
            run.log(row.epoch, row.numbers())
            print(
                f"finetune: epoch {row.epoch}/{config.epochs} reward {row.reward_mean:.2f} ± {row.reward_std:.2f}, "
                f"brightness {row.brightness:.0f}, kl {row.kl:.2g}, {ended - began:.0f} s",
                flush=True,
            )

        history = trainer.run(report)
        why = trainer.beyond_bounds(history)
        if why:
            print(f"finetune: ended after epoch {len(history)}: {why}; the adapter is the last within it")
        if distributed.is_main():
            save_adapter(pipe.unet, work / "adapter")
            write_rows(work / "adapter" / HISTORY, history)
            workspace.publish(work / "adapter", paths.ADAPTER)
            write_json(paths.FINETUNE_METRICS, summary(history, stopped=bool(why)))
    print(f"finetune: reward {history[0].reward_mean:.2f} -> {history[-1].reward_mean:.2f}, adapter in {paths.ADAPTER}")


def feedback(
    config: Finetune, *, size: int, seed: int, judge: "Mllm | None", captions: Mapping[str, str], folder: Path
) -> "Feedback":
    """Who scores the run's pictures. `judge` may be None if no reward asks it; `captions`: prompt -> its caption."""
    from t2i_feedback.finetuning.acquisition import Budget, Feedback
    from t2i_feedback.foundation import photometry
    from t2i_feedback.mllm import roles

    budget = None
    if config.acquisition != "all" and config.feedback_budget:
        budget = Budget(
            config.feedback_budget,
            config.acquisition,
            surrogate_weight=config.surrogate_weight,
            per_prompt=config.advantage == "per_prompt",
            embed=photometry.embeddings,
            seed=seed,
        )
    context = Context(config.preference, config.user, judge, captions, folder)
    return Feedback(
        registry.make(config.reward, context),
        registry.total(config.reward, size),
        budget=budget,
        overlap=config.overlap_judging,
        divided=config.user != "file",
        heard=lambda: roles.most_frequent(context.invalid),
    )


def plan(config: Finetune) -> str:
    """What a run will do, in a line: how much is drawn, what is rewarded, who is asked about what."""
    asked = "all of them" if config.acquisition == "all" else f"{config.feedback_budget} by {config.acquisition}"
    wanted = " + ".join(f"{weight:g} x {name}" for name, weight in registry.used(config.reward).items())
    whom = {"mllm": config.judge, "pixels": "photometry", "file": "a person"}[config.user]
    return (
        f"{config.epochs} epochs of {config.pictures_per_epoch} pictures, {asked} rewarded by {wanted}; the preference "
        f"is {whom}'s: “{config.preference}”"
    )


def summary(history: list[EpochRow], stopped: bool = False) -> dict[str, float]:
    """First and last figures. The last update of a run that was `stopped` at a bound is not in the adapter."""
    first, last = history[0], history[-1]
    before = history[-2].kl if len(history) > 1 else 0.0
    fields = ("reward_mean", "held_out_mean", "diversity", "brightness", "contrast", "sharpness")
    found = {
        f"{name}_{when}": getattr(row, name) for name in fields for when, row in (("first", first), ("last", last))
    }
    return {name: value for name, value in found.items() if value is not None} | {
        "kl_last": before if stopped else last.kl,
        "masked": float(sum(row.masked for row in history)),
        "asked": float(sum(row.asked for row in history)),
        "invalid_judge": sum(row.masked for row in history) / max(1, sum(row.asked for row in history)),
        "epochs": float(len(history)),
    }


def require_calibrated(p: params.Params) -> None:
    """Refuse a judge that cannot rank its own preference, or gave too few valid scores to tell."""
    try:
        numbers = json.loads(paths.CALIBRATION_METRICS.read_text())[p.finetune.judge]
        found = numbers["rank_correlation"]
    except (FileNotFoundError, KeyError):
        raise UserError(f"{paths.CALIBRATION_METRICS} has no {p.finetune.judge}: run `dvc repro calibrate`") from None
    named = [trait for trait in TRAITS if trait in numbers]
    if found is None and named:
        raise UserError(
            f"finetune.judge {p.finetune.judge} gave too few valid scores to say whether it ranks {', '.join(named)}; "
            f"see the plot {paths.JUDGE_PICTURES / 'sweeps.png'}. Choose another judge, or set "
            "finetune.require_calibrated to false"
        )
    if found is not None and found < p.calibrate.min_rank_correlation:  # None: the preference names no trait
        raise UserError(
            f"finetune.judge {p.finetune.judge} ranks its own preference with a correlation of {found:.2f}, below "
            f"calibrate.min_rank_correlation {p.calibrate.min_rank_correlation}; see the plot "
            f"{paths.JUDGE_PICTURES / 'sweeps.png'}. Choose another judge, or set finetune.require_calibrated to false"
        )


if __name__ == "__main__":
    running.run(main)
