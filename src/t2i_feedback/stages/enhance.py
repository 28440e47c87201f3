"""enhance: the MLLM rewrites every evaluation caption as a detailed prompt (round 1 of stage 1)."""

from t2i_feedback import params
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CaptionRow, read_rows, write_rows


def main() -> None:
    p = params.load()
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    entry = p.mllms[p.stage1.mllm]
    print(f"enhance: {p.stage1.mllm} rewrites {len(captions)} captions")
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.stable_diffusion import load_tokenizer
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.enhancing import Enhancer

    settings: list[workspace.Setting] = [p.stage1, str(decisive(entry)), p.model]
    with (
        workspace.partial("enhance", workspace.digest(settings, [paths.EVALUATION_CAPTIONS])) as work,
        shared.connect(p.stage1.mllm, entry, images=entry.images) as model,
    ):
        enhancer = Enhancer(
            model, lambda texts: tokens_lost(load_tokenizer(p.model), texts), p.stage1.max_invalid_fraction
        )
        rows = enhancer.first_prompts(captions)
        if distributed.is_main():
            finished = work / "prompts"
            write_rows(finished / paths.FIRST_PROMPTS.name, rows)
            workspace.publish(finished, paths.PROMPTS)
    cut = [row.tokens_lost for row in rows if row.tokens_lost]
    print(
        f"enhance: {sum(row.status == 'valid' for row in rows)} prompts, {len(cut)} of them longer than the image "
        f"model's window ({sum(cut)} tokens lost)"
    )


if __name__ == "__main__":
    running.run(main)
