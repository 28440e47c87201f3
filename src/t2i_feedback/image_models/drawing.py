"""A folder of drawn pictures that fills up batch by batch and is taken up where it stopped."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.images import about_png, save_png
from t2i_feedback.foundation.rows import PictureRow, PromptRow
from t2i_feedback.image_models.base import Pipeline, draw, flag, noise_seed
from t2i_feedback.image_models.section import Model
from t2i_feedback.image_models.stable_diffusion import ADAPTER_WEIGHTS


def image_name(caption_id: int, round: int) -> str:
    return f"images/{caption_id}-round{round}.png"


def draw_missing(
    load: Callable[[], Pipeline],
    prompts: Sequence[PromptRow],
    folder: Path,
    *,
    model: Model,
    seed: int,
    title: str,
    adapter: Path | None = None,
) -> None:
    """Draw every prompt's picture into folder/images; its noise depends on caption id and round alone.

    Batches are composed by order of the rows, and one that is not complete on disk (a picture of another prompt or of
    other parameters does not count) is drawn whole, so that an interrupted run ends with the same bytes, in however
    many processes: each draws its share of the batches, and all are there when this returns. `load` yields the pipeline
    and is called only if something is missing.
    """
    parameters = json.dumps(_decisive(model) | {"adapter": adapter and _digest(adapter)}, sort_keys=True)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    batches = [prompts[i : i + model.batch_size] for i in range(0, len(prompts), model.batch_size)]

    def about(row: PromptRow) -> dict[str, str]:
        noise = str(noise_seed(seed, row.caption_id, row.round))
        named = {"caption_id": str(row.caption_id), "round": str(row.round), "seed": noise, "prompt": row.prompt}
        return named | {"parameters": parameters}

    def drawn(row: PromptRow) -> bool:
        return about(row).items() <= about_png(folder / image_name(row.caption_id, row.round)).items()

    missing = [batch for batch in distributed.shard(batches) if not all(map(drawn, batch))]
    if missing:
        pipe, total = load(), sum(map(len, missing))
        with tqdm(total=total, unit="picture", desc=title, mininterval=1, disable=not distributed.is_main()) as bar:
            for batch in missing:
                for row, image, word in zip(batch, *_draw(pipe, batch, model, seed), strict=True):
                    found = {} if word is None else {"flagged": json.dumps(word)}
                    save_png(image, folder / image_name(row.caption_id, row.round), about(row) | found)
                bar.update(len(batch))
    distributed.barrier()


def _draw(
    pipe: Pipeline, batch: Sequence[PromptRow], model: Model, seed: int
) -> tuple[list[Image.Image], list[bool] | list[None]]:
    """A batch's pictures and the safety checker's word on each; `safety_checker: on` blackens those it flags."""
    images = draw(
        pipe,
        [row.prompt for row in batch],
        [noise_seed(seed, row.caption_id, row.round) for row in batch],
        steps=model.steps,
        guidance=model.guidance,
        eta=model.eta,
        size=model.size,
        negative_prompt=model.negative_prompt,
    )
    if model.safety_checker == "off":
        return images, [None] * len(batch)
    flags = flag(pipe, images)
    if model.safety_checker == "on":
        images = [Image.new("RGB", i.size) if found else i for i, found in zip(images, flags, strict=True)]
    return images, flags


def flagged(folder: Path, pictures: Sequence[PictureRow]) -> list[PictureRow]:
    """The rows with the safety checker's word on each picture, as its file tells it."""
    told = [about_png(folder / picture.image).get("flagged", "null") for picture in pictures]
    return [row.model_copy(update={"flagged": json.loads(word)}) for row, word in zip(pictures, told, strict=True)]


def _decisive(model: Model) -> dict[str, object]:
    """What of the parameters decides a picture: not where, in what company or how sparingly it is drawn."""
    bounds = {"device", "batch_size", "attention_slicing", "vae_slicing", "offload", "compile"}
    return model.model_dump(exclude=bounds)


def _digest(adapter: Path) -> str:
    """Names an adapter by its weights."""
    return hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest()[:16]
