"""reference: features of the real images that FID, KID, precision and recall compare every arm with."""

from typing import Annotated

from t2i_feedback.evaluation.section import Extractor, Resizer
from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import CHECKPOINT, Keys, Size, key, load, sides
from t2i_feedback.foundation.rows import CaptionRow, read_rows

DIVIDED = True  # among several processes


class Settings(Keys):
    source: str = key("data.source")
    val_split: str = key("data.val_split")
    drawn_at: Size = key("model.size")
    device: str = key("model.device")
    size: int | None = key("evaluate.size")  # None = model.size, the shorter side
    resizer: Resizer = key("evaluate.resizer")
    extractor: Extractor = key("evaluate.extractor")
    weights: Annotated[str | None, CHECKPOINT] = key("evaluate.weights")


def main() -> None:
    stage = pipeline.running("reference")
    p = load(Settings)
    rows = read_rows(paths.REFERENCE_CAPTIONS, CaptionRow)
    files = [paths.DATASET / row.image for row in rows]
    size = p.size or min(sides(p.drawn_at))
    print(f"reference: {p.extractor} features of {len(files)} real images at {size} x {size}")
    from safetensors.numpy import save_file

    from t2i_feedback.evaluation import decoding, extractors

    with workspace.unfinished(stage, p) as work:
        extractor = extractors.load(p.extractor, p.device, p.weights)
        extracted = extractors.extract(files, extractor, size, p.resizer)
        tensors = {"features": extracted.features}
        if extracted.logits is not None:
            tensors["logits"] = extracted.logits
        if distributed.is_main():
            out = work / "reference"
            out.mkdir(exist_ok=True)
            save_file(tensors, out / "features.safetensors")
            card = {
                "reference_n": len(files),
                "reference_set": f"{p.source}, {p.val_split} split",
                "resolution": size,
                "resizer": decoding.RESIZERS[p.resizer],
                "reference_format": ", ".join(sorted({file.suffix.lstrip(".") for file in files})),
                "extractor": p.extractor,
                "weights": extractor.weights,
                "feature_dimensions": extracted.features.shape[1],
                "classes": 0 if extracted.logits is None else extracted.logits.shape[1],
            }
            write_json(out / "card.json", card)
            workspace.publish(stage, p, out, paths.REFERENCE)
    print(f"reference: done, {len(files)} x {extracted.features.shape[1]} features in {paths.REFERENCE}")


if __name__ == "__main__":
    running.run(main)
