"""finetune: DDPO. The judge plays a user with a preference, its scores are the rewards, the adapter learns."""

import json
import time
from contextlib import ExitStack
from typing import get_args

from t2i_feedback import params
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CalibrationRow, CaptionRow, EpochRow, as_typed, read_rows, write_rows


def main() -> None:
    p = params.load()
    config = p.finetune
    captions = read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)
    if config.require_calibrated and config.user == "mllm" and "preference" in config.rewards:
        require_calibrated(p)
    print(f"finetune: {plan(config)}", flush=True)
    from t2i_feedback.finetuning.stopping import beyond_bounds
    from t2i_feedback.finetuning.trainer import HISTORY, Trainer
    from t2i_feedback.foundation import photometry
    from t2i_feedback.image_models.lora import add_adapter, save_adapter
    from t2i_feedback.image_models.stable_diffusion import load_pipeline
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.enhancing import first_prompts
    from t2i_feedback.rewards import human, registry
    from t2i_feedback.tracking import runs

    judge, held_out = p.mllms[config.judge], p.mllms[p.evaluate.judge]
    inputs = [paths.FINETUNE_CAPTIONS, *workspace.weights(p.model.name, judge.model, held_out.model)]
    settings: list[workspace.Setting] = [p.seed, p.model, config, str(decisive(judge)), str(decisive(held_out))]
    with ExitStack() as stack:
        work = stack.enter_context(workspace.partial("finetune", workspace.digest(settings, inputs)))
        if config.user == "file":
            human.check_answered(human.sheet(config.preference), work)
        user = stack.enter_context(shared.open(config.judge, judge)) if config.asks_judge else None
        second_user = stack.enter_context(shared.open(p.evaluate.judge, held_out))
        run = stack.enter_context(runs.stage_run(p, "finetune"))
        read = f"scores are read by {user.reading}, " if user else ""
        print(f"finetune: {read}held-out scores by {second_user.reading}", flush=True)
        if user and config.enhance_prompts:
            prompts = first_prompts(user, captions, p.model, config.max_invalid_fraction)
        else:
            prompts = as_typed(captions)
        pipe = load_pipeline(p.model, training=True)
        parameters = add_adapter(pipe.unet, config.lora_rank, config.lora_alpha, config.lora_targets, p.seed)
        trainer = Trainer(
            pipe,
            parameters,
            [row.prompt for row in prompts],
            human.feedback(
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
            held_out=registry.preference(second_user.own, config.preference),  # only watched: it stops nothing
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
        why = beyond_bounds(history, config)
        if why:
            print(f"finetune: ended after epoch {len(history)}: {why}; the adapter is the last within it")
        if distributed.is_main():
            save_adapter(pipe.unet, work / "adapter")
            write_rows(work / "adapter" / HISTORY, history)
            workspace.publish(work / "adapter", paths.ADAPTER)
            write_json(paths.FINETUNE_METRICS, summary(history, stopped=bool(why)))
    print(f"finetune: reward {history[0].reward_mean:.2f} -> {history[-1].reward_mean:.2f}, adapter in {paths.ADAPTER}")


def plan(config: Finetune) -> str:
    """What a run will do, in a line: how much is drawn, what is rewarded, who is asked about what."""
    asked = "all of them" if config.acquisition == "all" else f"{config.feedback_budget} by {config.acquisition}"
    wanted = " + ".join(f"{weight:g} x {name}" for name, weight in config.rewards.items())
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
    named = [trait for trait in get_args(CalibrationRow.model_fields["trait"].annotation) if trait in numbers]
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
