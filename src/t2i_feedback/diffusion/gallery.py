"""A folder of drawn pictures that fills up batch by batch and is taken up where it stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from t2i_feedback import processes
from t2i_feedback.diffusion.sampling import draw, noise_seed
from t2i_feedback.params import Model
from t2i_feedback.pictures import about_png, save_png
from t2i_feedback.records import PromptRow


def image_name(caption_id: int, round: int) -> str:
    return f"images/{caption_id}-round{round}.png"


def draw_missing(
    load: Callable[[], object], prompts: Sequence[PromptRow], folder: Path, *, model: Model, seed: int, title: str
) -> None:
    """Draw every prompt's picture into folder/images; its noise depends on caption id and round alone.

    Batches are composed by order of the rows, and one that is not complete on disk (a picture of another prompt does
    not count) is drawn whole, so that an interrupted run ends with the same bytes, in however many processes: each
    draws its share of the batches, and all are there when this returns. `load` yields the pipeline and is called only
    if something is missing.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    batches = [prompts[i : i + model.batch_size] for i in range(0, len(prompts), model.batch_size)]

    def drawn(row: PromptRow) -> bool:
        return about_png(folder / image_name(row.caption_id, row.round)).get("prompt") == row.prompt

    missing = [batch for batch in processes.share(batches) if not all(map(drawn, batch))]
    if missing:
        _draw(load(), missing, folder, model, seed, title)
    processes.meet()


def _draw(pipe, batches: Sequence[Sequence[PromptRow]], folder: Path, model: Model, seed: int, title: str) -> None:
    total = sum(map(len, batches))
    with tqdm(total=total, unit="picture", desc=title, mininterval=1, disable=not processes.first()) as bar:
        for batch in batches:
            images = draw(
                pipe,
                [row.prompt for row in batch],
                [noise_seed(seed, row.caption_id, row.round) for row in batch],
                steps=model.steps,
                guidance=model.guidance,
                eta=model.eta,
                size=model.size,
            )
            for row, image in zip(batch, images, strict=True):
                about = {"caption_id": str(row.caption_id), "round": str(row.round), "prompt": row.prompt}
                save_png(image, folder / image_name(row.caption_id, row.round), about)
            bar.update(len(batch))
