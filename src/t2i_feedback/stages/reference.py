"""reference: features of the real images that FID, KID, precision and recall compare every arm with."""

from pathlib import Path

from t2i_feedback import params
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.rows import CaptionRow, read_rows


def main() -> None:
    p = params.load()
    rows = read_rows(paths.REFERENCE_CAPTIONS, CaptionRow)
    files = [paths.DATASET / row.image for row in rows]
    size = p.evaluate.size or p.model.size
    print(f"reference: {p.evaluate.extractor} features of {len(files)} real images at {size} x {size}")
    from safetensors.numpy import save_file

    from t2i_feedback.evaluation import decoding, extractors

    settings: list[workspace.Setting] = [p.data, size, p.evaluate.extractor, p.evaluate.resizer, p.evaluate.weights]
    own = [Path(p.evaluate.weights)] if p.evaluate.weights and Path(p.evaluate.weights).exists() else []
    with workspace.partial("reference", workspace.digest(settings, [paths.REFERENCE_CAPTIONS, *files, *own])) as work:
        extractor = extractors.load(p.evaluate.extractor, p.model.device, p.evaluate.weights)
        extracted = extractors.extract(files, extractor, size, p.evaluate.resizer)
        tensors = {"features": extracted.features}
        if extracted.logits is not None:
            tensors["logits"] = extracted.logits
        if distributed.is_main():
            out = work / "reference"
            out.mkdir(exist_ok=True)
            save_file(tensors, out / "features.safetensors")
            card = {
                "reference_n": len(files),
                "reference_set": f"{p.data.source}, {p.data.val_split} split",
                "resolution": size,
                "resizer": decoding.RESIZERS[p.evaluate.resizer],
                "reference_format": ", ".join(sorted({file.suffix.lstrip(".") for file in files})),
                "extractor": p.evaluate.extractor,
                "weights": extractor.weights,
                "feature_dimensions": extracted.features.shape[1],
                "classes": 0 if extracted.logits is None else extracted.logits.shape[1],
            }
            write_json(out / "card.json", card)
            workspace.publish(out, paths.REFERENCE)
    print(f"reference: done, {len(files)} x {extracted.features.shape[1]} features in {paths.REFERENCE}")


if __name__ == "__main__":
    running.run(main)
