import shutil
from pathlib import Path

import pytest
import tracked
from made_up_run import write_run

from t2i_feedback import arms
from t2i_feedback.foundation import paths
from t2i_feedback.tracking import publish
from t2i_feedback.tracking.runs import parent_run

pytestmark = pytest.mark.slow  # needs MLflow


def test_the_same_captions_of_every_arm_lie_in_a_child_run_by_arm_and_caption(root: Path) -> None:
    write_run(Path.cwd(), captions=14)
    publish.publish()
    publish.publish()
    (name,) = tracked.children()
    assert name.startswith("arms ")
    child = parent_run().child(name)
    assert child.status == "FINISHED"
    assert len(tracked.client().list_artifacts(child.run_id, "images")) == 2 * len(child.images())  # each once
    keys = [key for key, step in child.images() if step == 0]
    assert len(keys) == 12 * len(arms.NAMES)
    captions = {arm: sorted(key.split("/")[1] for key in keys if key.startswith(f"{arm}/")) for arm in arms.NAMES}
    assert len(captions["raw"]) == 12 and captions["raw"][0].startswith("01 a")
    assert all(captions[arm] == captions["raw"] for arm in arms.NAMES)


def test_images_that_are_missing_after_an_interruption_follow_and_other_images_are_another_child(root: Path) -> None:
    write_run(Path.cwd(), captions=2)
    publish.publish()
    (name,) = tracked.children()
    child = parent_run().child(name)
    images = sorted((root / "mlartifacts" / child.run_id / "artifacts/images").glob("*.webp"))
    images[0].unlink()  # the copy that MLflow writes last
    assert len(child.images()) == len(images) - 1
    publish.publish()
    assert len(child.images()) == len(images)
    shutil.copyfile(paths.arm("raw") / "images/0-round1.png", paths.arm("raw") / "images/1-round1.png")
    publish.publish()
    assert len(tracked.children()) == 2
