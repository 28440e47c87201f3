"""A Stable Diffusion pipeline of a few thousand random weights, of the same classes and layout as SD 1.5."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.image_models.families.stable_diffusion import StableDiffusion
from t2i_feedback.image_models.section import Model

SIZE = 16  # pixels; latents are 8 x 8


def vae(**changes) -> AutoencoderKL:
    """Of 2 x 2 pixels a latent."""
    defaults = {"layers_per_block": 1, "latent_channels": 4, "sample_size": SIZE, "scaling_factor": 1.0}
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **(defaults | changes),
    )


def unet(**changes) -> UNet2DConditionModel:
    """Looks at the text on its lower level."""
    defaults = {"cross_attention_dim": 16, "attention_head_dim": 4}
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **(defaults | changes),
    )


def pipeline(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>"])}
    for token in [*letters, *(f"{letter}</w>" for letter in letters)]:
        vocabulary[token] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    made_vae, made_unet = vae(), unet()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    made = StableDiffusionPipeline(
        vae=made_vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=made_unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    for module in (made.unet, made.vae, made.text_encoder):
        module.requires_grad_(False).eval()
    return made


def checkpoint(folder: Path, *, safety: bool = False, **changes) -> Path:
    """The pipeline as a folder of Stable Diffusion 1.5's layout, with its safety checker if asked."""
    pipeline(folder / "made", **changes).save_pretrained(folder / "sd")
    if safety:
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(vision_config=vision | {"image_size": 16, "patch_size": 8}, projection_dim=8)
        StableDiffusionSafetyChecker(config).save_pretrained(folder / "sd" / "safety_checker")
        side = {"height": 16, "width": 16}
        CLIPImageProcessor(size=side, crop_size=side).save_pretrained(folder / "sd" / "feature_extractor")
        named = {
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": ["transformers", "CLIPFeatureExtractor"],  # as SD 1.x was published
            "requires_safety_checker": True,
        }
        index = folder / "sd" / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | named))
    return folder / "sd"


def image_model(pipe: StableDiffusionPipeline, **changes) -> StableDiffusion:
    """With those settings instead of `model`'s."""
    return StableDiffusion(pipe, model(**changes))


def model(**changes) -> Model:
    defaults = {
        "name": "tiny",
        "revision": "main",
        "dtype": "float32",
        "vae_dtype": "same",
        "device": "cpu",
        "size": SIZE,
        "scheduler": "ddim",
        "steps": 5,
        "guidance": 3.0,
        "negative_prompt": "",
        "eta": 0.0,
        "batch_size": 8,
        "safety_checker": "off",
        "attention_slicing": False,
        "vae_slicing": False,
        "vae_tiling": False,
        "offload": False,
        "compile": False,
    }
    return Model(**(defaults | changes))


def finetune(**changes) -> Finetune:
    defaults = {
        "judge": "none",
        "preference": "dark images",
        "user": "mllm",
        "reward": {"preference": 1.0},
        "acquisition": "all",
        "feedback_budget": None,
        "surrogate_weight": 1.0,
        "enhance_prompts": False,
        "require_calibrated": False,
        "epochs": 2,
        "prompts_per_epoch": 2,
        "images_per_prompt": 4,
        "steps": None,
        "guidance": None,
        "noise": {"kind": "auto", "level": 1.0, "window": None},
        "objective": "ddpo",
        "inner_epochs": 1,
        "updates_per_epoch": 2,
        "timestep_share": 1.0,
        "min_sigma": 0.0,
        "train_batch_size": 16,
        "learning_rate": 0.003,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "ema": 0.0,
        "clip_range": 0.0001,
        "advantage": "per_prompt",
        "advantage_clip": 5.0,
        "kl_weight": 0.0,
        "max_kl": None,
        "max_held_out_drop": None,
        "overlap_judging": False,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_targets": ["to_q", "to_k", "to_v", "to_out.0"],
        "optimiser": "adamw",
        "gradient_checkpointing": False,
        "keep_last": 2,
        "max_invalid_fraction": 0.5,
    }
    return Finetune(**(defaults | changes))
