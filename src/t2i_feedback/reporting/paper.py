"""The numbers that the paper reports (MS-COCO; value and its spread), to stand beside ours."""

PREFERENCE = (
    "images that have a dark, subdued color palette with a blurred appearance, "
    "creating a somber and introspective atmosphere"
)

# a name of the catalogue `mllms:` -> as the paper writes it
ENTRIES = {
    "llava15-7b": "LLaVA1.5-7b",
    "llava15-13b": "LLaVA1.5-13b",
    "llava16-7b": "LLaVA1.6-7b",
    "llava16-13b": "LLaVA1.6-13b",
    "gpt4": "GPT-4",
    "cogvlm": "CogVLM",
}

# prompt enhancer, validator, FID, its spread, IS, its spread, rounds, their spread (None: always one)
STAGE1 = (
    ("None", "None", 24.95, 0.51, 33.70, 0.47, 1, None),
    ("LLaVA1.5-7b", "None", 30.00, 0.60, 31.64, 0.47, 1, None),
    ("LLaVA1.5-13b", "None", 25.59, 0.51, 33.46, 0.48, 1, None),
    ("LLaVA1.6-7b", "None", 28.85, 0.55, 35.72, 0.53, 1, None),
    ("LLaVA1.6-13b", "None", 29.56, 0.56, 35.22, 0.52, 1, None),
    ("GPT-4", "None", 29.78, 0.55, 35.63, 0.52, 1, None),
    ("CogVLM", "None", 29.71, 0.58, 34.42, 0.53, 1, None),
    ("LLaVA1.5-7b", "LLaVA1.5-7b", 26.10, 0.51, 33.94, 0.52, 1.23, 0.57),
    ("LLaVA1.5-13b", "LLaVA1.5-13b", 24.37, 0.46, 34.61, 0.50, 2.39, 1.64),
    ("LLaVA1.6-7b", "LLaVA1.6-7b", 28.07, 0.53, 35.80, 0.51, 1.01, 0.09),
    ("LLaVA1.6-13b", "LLaVA1.6-13b", 28.50, 0.54, 35.78, 0.50, 1.27, 0.64),
    ("GPT-4", "GPT-4", 29.78, 0.57, 35.83, 0.52, 2.32, 1.69),
    ("CogVLM", "CogVLM", 29.80, 0.58, 34.53, 0.51, 1.10, 0.53),
)

# model, FID, IS, its spread, contrast, brightness
STAGE2 = (
    ("Stable Diffusion 1.5", 30.94, 32.53, 1.49, 73.83, 123.87),
    ("Fine-tuned", 29.28, 32.19, 1.39, 71.60, 123.78),
)

SILENT = "not stated"
CARD = {  # what the paper says of its own numbers, by the keys of our card; it is silent about the others
    "model": "Stable Diffusion 1.5",
    "n": "not stated",
    "reference_set": "MS-COCO, split not stated",
    "preference": PREFERENCE,
    "judge": "an MLLM, not named",
}
PROTOCOL = (
    "MS-COCO; number of images, resolution, resizer, steps, guidance and how ± was made: not stated. "
    "The values suggest about 5,000 images, or fewer."
)
