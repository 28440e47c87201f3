"""Small models in the exact folders and formats of the large ones, under the names that the hub has for these."""

import json
import os
import shutil
from pathlib import Path

import torch

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
LLAVA = {  # entry of the catalogue -> its name at the hub
    "llava15-7b": "llava-hf/llava-1.5-7b-hf",
    "llava15-13b": "llava-hf/llava-1.5-13b-hf",
    "llava16-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava16-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
}
SCHEDULER = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}  # what SD 1.5 has and the shipped model has not
SCHEDULER_KEYS = (  # of SD 1.5's scheduler_config.json, and the two by which the shipped model differs from it
    *("_class_name", "_diffusers_version", "beta_end", "beta_schedule", "beta_start", "num_train_timesteps"),
    *("set_alpha_to_one", "skip_prk_steps", "steps_offset", "trained_betas", "clip_sample"),
    *("prediction_type", "timestep_spacing"),
)
CHECKER_SIDE = 32  # pixels that the safety checker sees


def stable_diffusion(source: Path, target: Path) -> None:
    """SD 1.5's folder with `source`'s weights: PNDM, the slow tokeniser's files, safety checker, feature extractor.

    The safety checker has random weights, and thresholds that nothing exceeds.
    """
    for part in ("unet", "vae", "text_encoder"):
        shutil.copytree(source / part, target / part)
    scheduler = _json(source / "scheduler" / "scheduler_config.json") | SCHEDULER
    _write(target / "scheduler" / "scheduler_config.json", {key: scheduler[key] for key in SCHEDULER_KEYS})
    _tokenizer(source / "tokenizer", target / "tokenizer")
    _safety_checker(target)
    index = _json(source / "model_index.json") | {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "requires_safety_checker": True,
    }
    index.pop("image_encoder", None)
    _write(target / "model_index.json", index)


def _tokenizer(source: Path, target: Path) -> None:
    """vocab.json, merges.txt and special_tokens_map.json, which SD 1.5 has instead of tokenizer.json."""
    whole = _json(source / "tokenizer.json")["model"]
    config = _json(source / "tokenizer_config.json")
    tokens = {key: config[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    vocabulary = dict(whole["vocab"])
    for token in (tokens["bos_token"], tokens["eos_token"]):
        vocabulary.setdefault(token, len(vocabulary))
    _write(target / "vocab.json", vocabulary)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in whole["merges"]]
    (target / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    _write(target / "special_tokens_map.json", tokens)
    kept = {"model_max_length": config["model_max_length"], "do_lower_case": True, "add_prefix_space": False}
    _write(target / "tokenizer_config.json", tokens | kept | {"tokenizer_class": "CLIPTokenizer", "errors": "replace"})


def _safety_checker(target: Path) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": CHECKER_SIDE,
        "patch_size": 16,
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    StableDiffusionSafetyChecker(config).save_pretrained(target / "safety_checker")
    size = {"height": CHECKER_SIDE, "width": CHECKER_SIDE}
    CLIPImageProcessor(size={"shortest_edge": CHECKER_SIDE}, crop_size=size).save_pretrained(
        target / "feature_extractor"
    )


def llava(source: Path, target: Path, name: str) -> None:
    """`source` as another model: its config says so, and answers of one are not taken for another's."""
    shutil.copytree(source, target)
    _write(target / "config.json", _json(source / "config.json") | {"_name_or_path": name})


def inception(torch_home: Path) -> None:
    """Inception-v3 of torch-fidelity with random weights, where torch looks for the file before it fetches it.

    He's initialisation (2015) keeps what differs between images through its 94 layers; torch's own does not.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            """Keep what the constructor drew."""

    target = torch_home / "hub" / "checkpoints" / os.path.basename(URL_INCEPTION_V3)
    target.parent.mkdir(parents=True)
    torch.save({}, target)  # the constructor reads a file
    torch.manual_seed(0)
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(target))
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), target)


def _json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
