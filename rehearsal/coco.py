"""Drawn postcards as MS-COCO 2014: the official file names, archive and addresses, served over HTTP."""

import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps

from t2i_feedback.datasets.postcards.writing import write_dataset

IMAGES = {"train": 64, "val": 48}
SEED = 2014
SIDE, MARGIN = 96, 16  # pixels: the images are wider than high, as most of COCO's are


def write(root: Path) -> None:
    """`annotations/annotations_trainval2014.zip` and `<split>2014/COCO_<split>2014_<id>.jpg` under `root`."""
    (root / "annotations").mkdir(parents=True)
    archive = root / "annotations" / "annotations_trainval2014.zip"
    with TemporaryDirectory() as drawn, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as annotations:
        for _ in write_dataset(Path(drawn), IMAGES, SEED):
            pass
        for split in IMAGES:
            content = json.loads((Path(drawn) / f"annotations/captions_{split}.json").read_text())
            (root / f"{split}2014").mkdir()
            for image in content["images"]:
                source = Path(drawn) / split / image["file_name"]
                image["file_name"] = f"COCO_{split}2014_{image['id']:012d}.jpg"
                image |= _photograph(source, root / f"{split}2014" / image["file_name"])
            for annotation in content["annotations"]:
                del annotation["facts"]  # COCO's captions state none
            annotations.writestr(f"annotations/captions_{split}2014.json", json.dumps(content))


def _photograph(drawn: Path, target: Path) -> dict[str, int]:
    """A JPEG with margins of the corner's colour; its size as COCO lists it."""
    with Image.open(drawn) as opened:
        image = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    wide = ImageOps.expand(image, (MARGIN, 0), image.getpixel((0, 0)))
    wide.save(target, quality=90)
    return {"width": wide.width, "height": wide.height}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The folder at an address of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
