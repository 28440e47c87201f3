"""One HTML file in which the images of several runs stand side by side: the same captions, in every arm.

    make gallery RUNS="workspace my-experiment other-experiment"     # OUT=gallery.html CAPTIONS=64
    python -m t2i_feedback.tools.gallery my-experiment

A run is `workspace` (the present folder; all there is, if none is named), an experiment of `dvc exp list`, a branch or
a commit; its images are read from DVC's cache. A page of more than 60 MB becomes a folder with the images beside it.
"""

from pathlib import Path

from t2i_feedback.foundation import running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.arguments import Arguments, count
from t2i_feedback.tools.gallery import page
from t2i_feedback.tools.gallery.collecting import HERE, collect


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("runs", nargs="*", default=[HERE], help="experiments, branches, commits, or workspace")
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), help="where the page goes")
    parser.add_argument("--captions", type=count, help="at most so many; else 256, or 64 of images above 256 pixels")
    given = parser.parse_args()
    if given.out.suffix != ".html":
        raise UserError(f"OUT: {given.out} must end with .html")
    collection = collect(given.runs, given.captions)
    path, size = page.write(collection, given.out)
    for sentence in collection.left_out:
        print(f"gallery: {sentence}")
    counts = f"{len(collection.captions)} captions, {len(collection.columns)} arms"
    print(f"gallery: {counts}, {size / 1e6:.1f} MB; open {path}")


if __name__ == "__main__":
    running.run(main)
