"""How the published models are made tiny for the CPU. Each entry of TINY is a part of the check."""

from typing import Any

TOKENS = 77  # of CLIP's texts
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1},
    "text_encoder": TEXT | {"projection_dim": 16},
    "text_encoder_2": TEXT | {"projection_dim": 16},
    "text_encoder_3": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}
UNET: dict[str, Any] = {"norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8, 16)}
# Published model -> what its network is changed by, and what that is told of a text.
TINY: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "sd15": (
        UNET
        | {
            "attention_head_dim": 4,
            "cross_attention_dim": 16,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        {"prompt_embeds": (TOKENS, 16)},
    ),
    "sdxl": (
        UNET
        | {
            "addition_time_embed_dim": 4,
            "attention_head_dim": (1, 2),
            "cross_attention_dim": 32,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "projection_class_embeddings_input_dim": 16 + 6 * 4,
            "transformer_layers_per_block": 1,
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        {"prompt_embeds": (TOKENS, 32), "pooled_prompt_embeds": (16,)},
    ),
    "sd35": (
        {
            "attention_head_dim": 8,
            "caption_projection_dim": 16,
            "dual_attention_layers": (0,),
            "joint_attention_dim": 32,
            "num_attention_heads": 2,
            "num_layers": 2,
            "pooled_projection_dim": 32,
            "pos_embed_max_size": 8,
        },
        {"prompt_embeds": (TOKENS, 32), "pooled_prompt_embeds": (32,)},
    ),
}
