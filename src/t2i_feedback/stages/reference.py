"""reference: features of the real images that FID, KID, precision and recall compare every arm with."""

from t2i_feedback import params, paths, processes, records, stages, workspace


def main() -> None:
    p = params.load()
    rows = records.read(paths.REFERENCE_CAPTIONS, records.CaptionRow)
    files = [paths.DATASET / row.image for row in rows]
    print(f"reference: {p.evaluate.extractor} features of {len(files)} real images at {p.model.size} x {p.model.size}")
    from safetensors.numpy import save_file

    from t2i_feedback.evaluation import extractors

    digest = workspace.digest([p.data, p.model.size, p.evaluate.extractor], [paths.REFERENCE_CAPTIONS, *files])
    with workspace.partial("reference", digest) as work:
        extracted = extractors.extract(files, extractors.load(p.evaluate.extractor, p.model.device), p.model.size)
        if processes.first():
            out = work / "reference"
            out.mkdir(exist_ok=True)
            save_file({"features": extracted.features, "logits": extracted.logits}, out / "features.safetensors")
            card = {
                "reference_n": len(files),
                "reference_set": f"{p.data.source}, {p.data.val_split} split",
                "resolution": p.model.size,
                "resizer": extractors.RESIZER,
                "reference_format": ", ".join(sorted({file.suffix.lstrip(".") for file in files})),
                "extractor": p.evaluate.extractor,
                "feature_dimensions": extracted.features.shape[1],
                "classes": extracted.logits.shape[1],
            }
            records.write_json(out / "card.json", card)
            workspace.publish(out, paths.REFERENCE)
    print(f"reference: done, {len(files)} x {extracted.features.shape[1]} features in {paths.REFERENCE}")


if __name__ == "__main__":
    stages.run(main)
