"""finetune: the judge plays a user with a preference, its scores are the rewards, the adapter learns."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import FREE, EntryName, Keys, Seed, key, load
from t2i_feedback.foundation.rows import CaptionRow, as_typed, read_rows, write_rows
from t2i_feedback.image_models.section import Model
from t2i_feedback.mllm.section import Catalogue
from t2i_feedback.rewards import human, registry
from t2i_feedback.rewards.base import Context

if TYPE_CHECKING:
    from t2i_feedback.finetuning.acquisition import Scorer
    from t2i_feedback.mllm.base import Mllm

DIVIDED = True  # among several processes


class Settings(Keys):
    seed: Seed
    model: Model
    mllms: Catalogue
    finetune: Finetune
    held_out: EntryName = key("evaluate.judge")
    least: Annotated[float, FREE] = key("calibrate.min_rank_correlation")


def main() -> None:
    stage = pipeline.running("finetune")
    p = load(Settings)
    config = p.finetune
    captions = read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)
    weights = registry.used(config.reward)
    from t2i_feedback.rewards.mllm import preference, require_calibrated

    if config.require_calibrated and config.user == "mllm" and "preference" in weights:
        require_calibrated(config.judge, p.least, paths.CALIBRATION_NUMBERS, paths.JUDGE_PLOTS / "sweeps.png")
    print(f"finetune: {config.plan(weights)}", flush=True)
    from t2i_feedback.finetuning import progress
    from t2i_feedback.finetuning.stopping import beyond_bounds, epochs_learnt
    from t2i_feedback.finetuning.trainer import HISTORY, Trainer
    from t2i_feedback.foundation import photometry
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.loading import load_image_model, load_tokenizer
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.enhancing import Enhancer
    from t2i_feedback.tracking.streaming import stage_run

    limit = ("finetune.max_invalid_fraction", config.max_invalid_fraction)

    def connect(name: str) -> shared.Shared:
        return stack.enter_context(shared.connect(name, p.mllms[name], paths.ledger(), max_invalid=limit))

    with ExitStack() as stack:
        work = stack.enter_context(workspace.unfinished(stage, p))
        if config.user == "file":
            human.check_answered(human.sheet_of(config.preference, paths.feedback()), work)
        asked = config.enhance_prompts or registry.questions(config.reward, config.user)
        user, second_user = connect(config.judge) if asked else None, connect(p.held_out)
        run = stack.enter_context(stage_run("finetune"))
        read = f"scores are read by {user.reading}, " if user else ""
        print(f"finetune: {read}held-out scores by {second_user.reading}", flush=True)
        prompts = as_typed(captions)
        if user and config.enhance_prompts:
            tokenizer = load_tokenizer(p.model)
            enhancer = Enhancer(user, lambda texts: tokens_lost(tokenizer, texts), config.max_invalid_fraction)
            prompts = enhancer.first_prompts(captions)
        image_model = load_image_model(p.model, training=True)
        sources = {made.prompt: row.caption for made, row in zip(prompts, captions, strict=True)}
        trainer = Trainer(
            image_model,
            image_model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, p.seed),
            [row.prompt for row in prompts],
            scorer(config, p.model.pixels, p.seed, user.own if user else None, sources, work),
            photometry.means,
            model=p.model,
            finetune=config,
            seed=p.seed,
            folder=work,
            held_out=preference(second_user.own, config.preference),  # no reward
        )

        def show_images(epochs: int) -> None:
            if epochs in (0, config.epochs // 2):
                run.images(epochs, trainer.samples)

        history = trainer.run(progress.reporter(config.epochs, run.log), show_images)
        run.images(len(history), trainer.samples)
        why = beyond_bounds(history, config)
        if distributed.is_main():
            with trainer.as_saved():
                image_model.save_adapter(work / "adapter")
            write_rows(work / "adapter" / HISTORY, history)
            numbers = progress.summary(history, epochs_learnt(history, config))
            write_json(work / "adapter" / paths.FINETUNE_NUMBERS.name, numbers)
            workspace.publish(stage, p, work / "adapter", paths.ADAPTER)
            run.adapter(paths.ADAPTER)
    if why:
        print(f"finetune: ended after epoch {len(history)}: {why}; the adapter is the last within bounds")
    print(f"finetune: reward {history[0].reward_mean:.2f} -> {history[-1].reward_mean:.2f}, adapter in {paths.ADAPTER}")


def scorer(
    config: Finetune, pixels: int, seed: int, judge: "Mllm | None", captions: Mapping[str, str], folder: Path
) -> "Scorer":
    """Who scores the run's images. `judge` may be None if no reward asks it; `captions`: prompt -> its caption."""
    from t2i_feedback.finetuning.acquisition import Scorer
    from t2i_feedback.mllm import roles

    context = Context(config.preference, config.user, judge, captions, folder, paths.feedback())
    rewards, total = registry.make(config.reward, context), registry.total(config.reward, pixels)
    return Scorer.of(config, rewards, total, seed, lambda: roles.most_frequent(context.invalid))


if __name__ == "__main__":
    running.run(main)
