"""A folder of images that is drawn batch by batch. An interrupted run goes on with the batches that are missing.

An image's file tells what it was made of, in the PNG's text. What the safety checker says of it stands beside the
folder, in FOLDER-flags/, so that it is not published with it: rows of images have it in their field `flagged`.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from t2i_feedback.foundation import distributed, files
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.images import about_png, save_png
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import ImageRow, PromptRow
from t2i_feedback.foundation.seeds import noise_seed
from t2i_feedback.image_models.base import ImageModel
from t2i_feedback.image_models.section import Model


def image_name(caption_id: int, round: int) -> str:
    return f"images/{caption_id}-round{round}.png"


def draw_missing(
    load: Callable[[], ImageModel],
    prompts: Sequence[PromptRow],
    folder: Path,
    *,
    model: Model,
    seed: int,
    title: str,
    adapter: Path | None = None,
) -> None:
    """Draw every prompt's image into folder/images; its noise depends on seed, caption id and round alone.

    Rows make batches in their order. A batch is drawn whole unless all its images are there, of these prompts and
    parameters, so an interrupted run ends with the same bytes. Several processes share the batches, and all images
    are there when this returns. `load` gives the image model, and is called only if something is missing.
    """
    parameters = json.dumps(decisive(model) | {"adapter": adapter and _adapter_digest(adapter)}, sort_keys=True)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    batches = [prompts[i : i + model.batch_size] for i in range(0, len(prompts), model.batch_size)]

    def about(row: PromptRow) -> dict[str, str]:
        noise = str(noise_seed(seed, row.caption_id, row.round))
        named = {"caption_id": str(row.caption_id), "round": str(row.round), "seed": noise, "prompt": row.prompt}
        return named | {"parameters": parameters}

    def is_drawn(row: PromptRow) -> bool:
        image = image_name(row.caption_id, row.round)
        checked = model.safety_checker == "off" or _flag_file(folder, image).exists()
        return checked and about(row).items() <= about_png(folder / image).items()

    missing = [batch for batch in distributed.shard(batches) if not all(map(is_drawn, batch))]
    if missing:
        image_model, total = load(), sum(map(len, missing))
        with tqdm(total=total, unit="image", desc=title, mininterval=1, disable=not distributed.is_main()) as bar:
            for batch in missing:
                for row, image, found in zip(batch, *_draw(image_model, batch, model, seed), strict=True):
                    name = image_name(row.caption_id, row.round)
                    _keep_flag(folder, name, found)  # before the image, which says that both are there
                    save_png(image, folder / name, about(row))
                bar.update(len(batch))
    distributed.barrier()


def _draw(
    image_model: ImageModel, batch: Sequence[PromptRow], model: Model, seed: int
) -> tuple[list[Image.Image], list[bool] | list[None]]:
    """A batch's images, and whether the safety checker flags each; `safety_checker: on` blackens those it flags."""
    images = image_model.draw(
        [row.prompt for row in batch], [noise_seed(seed, row.caption_id, row.round) for row in batch]
    )
    if model.safety_checker == "off":
        return images, [None] * len(batch)
    flags = image_model.flag(images)
    if model.safety_checker == "on":
        images = [Image.new("RGB", i.size) if found else i for i, found in zip(images, flags, strict=True)]
    return images, flags


def copy_images(images: Sequence[ImageRow], arm: Path, folder: Path) -> None:
    """Copy these images of the finished arm in folder `arm` into `folder`, with what the safety checker said of them.

    Several processes share the copying, and all images are there when this returns.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row in distributed.shard(images):
        _keep_flag(folder, row.image, row.flagged)
        shutil.copyfile(arm / row.image, folder / row.image)
    distributed.barrier()


def flagged(folder: Path, images: Sequence[ImageRow]) -> list[ImageRow]:
    """The rows of the folder's images with their field `flagged`: None where no safety checker looked."""
    found = [_flag_file(folder, row.image) for row in images]
    flags = [json.loads(file.read_text()) if file.exists() else None for file in found]
    return [row.model_copy(update={"flagged": one}) for row, one in zip(images, flags, strict=True)]


def _flag_file(folder: Path, image: str) -> Path:
    """Where an image's flag is kept: one small file each, which no two processes write."""
    return folder.with_name(f"{folder.name}-flags") / Path(image).with_suffix(".json").name


def _keep_flag(folder: Path, image: str, found: bool | None) -> None:
    if found is not None:
        files.write_text(_flag_file(folder, image), json.dumps(found))


def _adapter_digest(adapter: Path) -> str:
    """Names an adapter by its weights."""
    return files.digest(adapter / ADAPTER_WEIGHTS)[:16]
