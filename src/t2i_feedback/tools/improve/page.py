"""The page beside improved images: each prompt with its rounds."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from t2i_feedback.foundation.files import write_text
from t2i_feedback.foundation.rows import ImageRow
from t2i_feedback.loop import rounds
from t2i_feedback.tools.improve.improving import Improver

TEMPLATE = "page.html.j2"


def write(improver: Improver, images: Sequence[ImageRow]) -> Path:
    """Writes index.html into the improver's folder, of the images so far. Returns its path."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    prompts = [(improver.caption(rows[0]), rounds.keep(rows), rows) for rows in rounds.by_caption(images).values()]
    path = improver.folder / "index.html"
    write_text(
        path,
        environment.get_template(TEMPLATE).render(
            prompts=prompts,
            outcome=outcome,
            model=improver.p.model,
            stage1=improver.p.stage1,
            adapter=improver.adapter,
            warning=improver.warning,
        ),
    )
    return path


def outcome(row: ImageRow) -> str:
    """accepted or rejected with P(yes), or why there is no verdict."""
    if row.accepted is None:
        return f"without a verdict ({row.status})"
    return f"{'accepted' if row.accepted else 'rejected'}, P(yes) {row.p_yes:.2f}"
