"""What a running stage tells MLflow, step by step, in a child run of its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_feedback.tracking import entities, store
from t2i_feedback.tracking.interruptions import shielded
from t2i_feedback.tracking.runs import Run, image_key, parent_run
from t2i_feedback.tracking.under_way import end_dead_runs, under_way

if TYPE_CHECKING:
    from PIL import Image


class Stream:
    """Metrics and images of a running stage. The first failure of MLflow ends the stream, not the stage.

    What the run has already is not logged again: an interrupted stage repeats the steps that it takes up.
    """

    def __init__(self, run: Run | None):
        self._run = run
        self._held: set[tuple[str, int, float]] | None = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        with self.tolerant():
            if self._run:
                self._held = self._run.held() if self._held is None else self._held
                new = {name: value for name, value in numbers.items() if (name, step, value) not in self._held}
                if new:
                    self._run.log(step, new)

    def images(self, step: int, draw: Callable[[], Mapping[str, "Image.Image"]]) -> None:
        """Images, each with what it shows. `draw` is called only if the run has none of this step."""
        missing = False
        with self.tolerant():
            missing = self._run is not None and step not in {there for _, there in self._run.images()}
        if missing:
            drawn = draw()
            with self.tolerant():
                for number, (shows, image) in enumerate(drawn.items(), 1):
                    if self._run:
                        self._run.image(image_key(f"{number} {shows}"), step, image)

    def adapter(self, folder: Path) -> None:
        """The adapter in this folder, as the model that the run has made."""
        with self.tolerant():
            if self._run:
                entities.adapter(self._run, folder)

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """Around what is said to MLflow."""
        try:
            with shielded():
                yield
        except Exception as error:  # MLflow, SQLAlchemy, requests and the disk each raise their own
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the stream, with a warning the first time."""
        if self._run:
            store.warn(error)
        self._run = None


@contextmanager
def stage_run(stage: str) -> Iterator[Stream]:
    """A child run for one stage, under the parent of this state; an interrupted stage goes on in the same child.

    Both end together with the stage (`under_way`).
    """
    if not store.wanted():
        yield Stream(None)
        return
    with ExitStack() as stack:
        stream = Stream(_begin(stage, stack))
        yield stream
        try:
            stack.close()
        except Exception as error:
            stream.fail(error)


def _begin(stage: str, stack: ExitStack) -> Run | None:
    """The child, which the stack ends; None when MLflow fails."""
    try:
        end_dead_runs()
        parent = parent_run()
        run = parent.child(stage)
        stack.enter_context(under_way(run, parent))
        with shielded():
            entities.dataset(run, "training")
    except Exception as error:
        store.warn(error)
        return None
    return run
