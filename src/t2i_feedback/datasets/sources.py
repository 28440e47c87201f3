"""Is the data set there that `data` names? Looked at before anything is removed or begun, by file names alone."""

from pathlib import Path

from t2i_feedback.datasets import coco, folder
from t2i_feedback.datasets.captioned import CaptionedImage, Problems
from t2i_feedback.datasets.section import Data
from t2i_feedback.foundation.errors import UserError


def foresee(wanted: Data, root: Path) -> None:
    """Raises UserError when the captions are not to be had, or images of a folder are missing.

    `root` is the repository: in an experiment's copy of it, what neither git nor DVC tracks is absent.
    """
    if wanted.source == "postcards" or wanted.fetch != "none":
        return
    try:
        if wanted.source == "folder":
            images = folder.read(wanted.path)
            if not wanted.skip_unreadable:
                _check_there(images)
        else:
            for split in dict.fromkeys((wanted.train_split, wanted.val_split)):
                coco.check_place(wanted.path, split)
    except UserError as error:
        if Path.cwd() != root and not wanted.path.is_absolute() and (root / wanted.path).exists():
            raise UserError(
                f"{error}. This is an experiment's own copy of the repository, which holds what git or DVC tracks: "
                f"`dvc add {wanted.path}` and commit, or set data.path to {root / wanted.path}"
            ) from None
        raise


def _check_there(images: list[CaptionedImage]) -> None:
    problems = Problems()
    problems.found = [f"{image.path} is missing" for image in images if not image.path.exists()]
    problems.raise_any("; data.skip_unreadable: true leaves such images out")
