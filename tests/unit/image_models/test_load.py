"""Checkpoints of Stable Diffusion's layout: which are taken, how they are set up, and what is said of the others."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import torch
from hub_server import hub
from PIL import Image

from t2i_feedback.finetuning import optimiser
from t2i_feedback.finetuning.rollout import roll_out
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import about_png, open_rgb
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import ImageRow, PromptRow, read_rows, write_rows
from t2i_feedback.foundation.seeds import generators, noise_seed
from t2i_feedback.image_models import base, drawing, loading

REPOSITORY = Path(__file__).parents[3]
ABOUT = {"caption_id", "round", "seed", "prompt", "parameters"}
SCHEDULERS = ["ddim", "pndm", "dpmsolver++", "euler"]
SD15_SCHEDULER = {  # scheduler_config.json of stable-diffusion-v1-5
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
PROMPTS = [
    PromptRow(caption_id=i, round=1, prompt=text, status="valid") for i, text in enumerate(["a cat", "b", "c d", "e"])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion.checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a safety checker."""
    return tiny_diffusion.checkpoint(tmp_path_factory.mktemp("checked"), safety=True)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def draw(made: base.ImageModel, prompts=("a cat", "two dogs"), seeds=(1, 2)) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in made.draw(prompts, seeds)]


def drawn(folder: Path, **changes) -> list[np.ndarray]:
    model = tiny_diffusion.model(name=str(folder), **changes)
    return draw(loading.load_image_model(model))


def apart(some: list[np.ndarray], others: list[np.ndarray]) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def refusal(name: str | Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        loading.load_image_model(tiny_diffusion.model(name=str(name), **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ how it is drawn


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.slow
def test_a_image_does_not_depend_on_its_batch(scheduler: str, folder: Path) -> None:
    model = tiny_diffusion.model(name=str(folder), scheduler=scheduler)
    made = loading.load_image_model(model)
    together = draw(made, ["a", "b c", "d"], [1, 2, 3])
    alone = [draw(made, [prompt], [seed])[0] for prompt, seed in (("a", 1), ("b c", 2), ("d", 3))]
    assert apart(together, alone) <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_drawn_is_what_diffusers_draws(scheduler: str, folder: Path) -> None:
    model = tiny_diffusion.model(name=str(folder), scheduler=scheduler, negative_prompt="dark")
    made = loading.load_image_model(model)
    prompts = ["a cat", "two dogs"]
    theirs = made.pipe(
        prompts,
        negative_prompt=["dark"] * 2,
        generator=generators([1, 2]),
        num_inference_steps=model.steps,
        guidance_scale=model.guidance,
        height=model.size,
        width=model.size,
    ).images
    assert apart(draw(made, prompts), [np.asarray(image).astype(int) for image in theirs]) <= 1


@pytest.mark.parametrize(
    ("scheduler", "made_is"),
    [("ddim", "DDIM"), ("pndm", "PNDM"), ("dpmsolver++", "DPMSolverMultistep"), ("euler", "EulerDiscrete")],
)
def test_every_scheduler_keeps_the_checkpoints_noise_schedule(scheduler: str, made_is: str, copy: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD15_SCHEDULER))
    made = loading.load_image_model(tiny_diffusion.model(name=str(copy), scheduler=scheduler)).pipe.scheduler
    assert type(made).__name__ == f"{made_is}Scheduler"
    cumulative = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    torch.testing.assert_close(made.alphas_cumprod.double(), cumulative, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("written", "scheduler", "others"),
    [
        ({"rescale_betas_zero_snr": True}, "pndm", "ddim or dpmsolver++ or euler"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "ddim", "euler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "dpmsolver++", ""),
    ],
)
def test_a_scheduler_that_would_drop_what_decides_the_noise_schedule_is_refused(
    written: dict, scheduler: str, others: str, copy: Path
) -> None:
    config, index = copy / "scheduler" / "scheduler_config.json", copy / "model_index.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | written))
    if "_class_name" in written:
        index.write_text(index.read_text().replace("DDIMScheduler", written["_class_name"]))
    key = [*written][-1]
    keeps = f"set {others}" if others else "no other one of its family keeps it"
    told = f"model.scheduler: {scheduler} would drop {key} of the checkpoint's noise schedule; {keeps}"
    assert told in refusal(copy, scheduler=scheduler)
    for other in others.split(" or ") if others else ():
        made = loading.load_image_model(tiny_diffusion.model(name=str(copy), scheduler=other)).pipe.scheduler
        assert made.config[key] == written[key]


def test_the_published_schedule_of_sd_15_can_be_trained_with(copy: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD15_SCHEDULER))
    schedule = loading.load_image_model(tiny_diffusion.model(name=str(copy))).schedule(50, "ddim", 1.0)
    assert schedule.clip_range is None  # latents lie beyond +-1
    assert (schedule.sigma > 0).all()
    assert schedule.timesteps[[0, -1]].tolist() == [981, 1]


def test_a_checkpoint_that_does_not_say_is_not_clipped_either(copy: Path) -> None:
    silent = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(silent))
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "EulerDiscreteScheduler"))
    schedule = loading.load_image_model(tiny_diffusion.model(name=str(copy))).schedule(50, "ddim", 1.0)
    assert schedule.clip_range is None and (schedule.sigma > 0).all()


def test_training_takes_ddims_steps_whatever_draws_the_arms(checked: Path) -> None:
    model = tiny_diffusion.model(name=str(checked), scheduler="euler", safety_checker="report")
    pipe = loading.load_image_model(model, training=True).pipe
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.safety_checker is None


def test_a_policy_follows_a_negative_prompt(folder: Path) -> None:
    """Its null embedding is the negative prompt's: then a rollout draws what the arms draw."""
    model = tiny_diffusion.model(name=str(folder), negative_prompt="dark", eta=1.0)
    made = loading.load_image_model(model, training=True)
    prompts, seeds = ["a cat", "two dogs"], [1, 2]
    policy = base.Policy.of(made, made.schedule(model.steps, "ddim", 1.0))
    rollout = roll_out(policy, made.encode(prompts), torch.tensor([0, 1]), seeds)
    assert apart([np.asarray(image).astype(int) for image in rollout.images], draw(made, prompts, seeds)) <= 1


def test_a_negative_prompt_changes_the_images(folder: Path) -> None:
    assert apart(drawn(folder), drawn(folder, negative_prompt="dark")) > 1


@pytest.mark.parametrize("switch", ["attention_slicing", "vae_slicing"])
def test_slicing_saves_memory_and_changes_no_image(switch: str, folder: Path) -> None:
    assert apart(drawn(folder), drawn(folder, **{switch: True})) <= 1


def test_the_switches_reach_the_parts(folder: Path) -> None:
    on = {"attention_slicing": True, "vae_slicing": True, "vae_tiling": True}
    pipe = loading.load_image_model(tiny_diffusion.model(name=str(folder), **on)).pipe
    assert pipe.vae.use_slicing and pipe.vae.use_tiling
    assert {type(one).__name__ for one in pipe.unet.attn_processors.values()} == {"SlicedAttnProcessor"}


def test_tiles_overlap_to_nearly_the_whole_image(folder: Path) -> None:
    whole, tiled = drawn(folder, size=64), drawn(folder, size=64, vae_tiling=True)
    assert apart(whole, tiled) > 0
    assert np.mean([np.abs(a - b).mean() for a, b in zip(whole, tiled, strict=True)]) < 20


def test_what_is_offloaded_comes_when_it_is_called_and_goes_when_it_is_done(folder: Path, monkeypatch) -> None:
    model = tiny_diffusion.model(name=str(folder))
    made = loading.load_image_model(model)
    expected, moves = draw(made), []
    for name, module in (("text", made.pipe.text_encoder), ("vae", made.pipe.vae.decoder)):
        monkeypatch.setattr(module, "to", lambda device, name=name: moves.append((name, device)))
        loading.rest_on_cpu(module, "cuda")
    assert apart(draw(made), expected) == 0
    text = [("text", "cuda"), ("text", "cpu")]
    assert moves == [*text, *text, ("vae", "cuda"), ("vae", "cpu")]  # the prompts, the negative prompt, the images


def test_offloading_on_the_cpu_is_said_to_be_idle(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loading.load_image_model(tiny_diffusion.model(name=str(folder), offload=True))
    assert "model.offload: everything is on the CPU already" in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_nearly_the_same(dtype: str, folder: Path) -> None:
    whole, half = drawn(folder), drawn(folder, dtype=dtype)
    assert np.mean([np.abs(a - b).mean() for a, b in zip(whole, half, strict=True)]) < 8


def overflowing(folder: Path) -> Path:
    """A VAE whose activations pass float16's 65,504 on the way and come back."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae")
    vae.decoder.conv_in.weight.data *= 1e5
    vae.save_pretrained(folder / "vae")
    return folder


def test_a_vae_that_overflows_stops_before_a_black_image_is_saved(copy: Path) -> None:
    with pytest.raises(UserError, match=r"model.vae_dtype: the VAE overflows in torch.float16; set it to float32"):
        drawn(overflowing(copy), dtype="float16")


def test_a_vae_in_float32_under_a_unet_in_float16_does_not_overflow(copy: Path) -> None:
    assert all(image.std() > 0 for image in drawn(overflowing(copy), dtype="float16", vae_dtype="float32"))


@pytest.mark.slow
def test_compiling_changes_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    # TorchDynamo's own eager backend: the graph is captured and run, no C++ is compiled
    monkeypatch.setattr(
        torch, "compile", lambda f, compile=torch.compile: compiled.append(f) or compile(f, backend="eager")
    )
    assert apart(drawn(folder, compile=True), drawn(folder)) <= 1
    assert len(compiled) == 1


@pytest.mark.slow
def test_where_compiling_fails_one_line_says_so_and_it_is_drawn_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(graph, inputs):
        raise RuntimeError("no C++ compiler is here")

    monkeypatch.setattr(torch, "compile", lambda f, compile=torch.compile: compile(f, backend=no_compiler))
    assert apart(drawn(folder, compile=True), drawn(folder)) == 0
    assert "model.compile: torch.compile failed, drawing goes on without it" in caplog.text


# ------------------------------------------------------------------------------------------------ the safety checker


def flag_the_third(checked: Path, made: base.ImageModel) -> None:
    """Make the third prompt's image the concept that the checkpoint's checker looks for."""
    seeds = [noise_seed(7, row.caption_id, row.round) for row in PROMPTS]
    images = [Image.fromarray(a.astype(np.uint8)) for a in draw(made, [row.prompt for row in PROMPTS], seeds)]
    checker = made.pipe.safety_checker
    pixels = made.pipe.feature_extractor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        found = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(pixels)[1]))
    likeness = (found @ found[2]).sort().values
    checker.special_care_embeds_weights.data.fill_(2)
    checker.concept_embeds_weights.data.fill_(2)
    checker.concept_embeds.data[0] = found[2]
    checker.concept_embeds_weights.data[0] = float(likeness[-2:].mean())
    checker.save_pretrained(checked / "safety_checker")


def gallery_of(checked: Path, out: Path, word: str) -> list[ImageRow]:
    """Four images drawn under that safety checker, of which it flags the third."""
    reporting = tiny_diffusion.model(name=str(checked), safety_checker="report")
    flag_the_third(checked, loading.load_image_model(reporting))
    model = tiny_diffusion.model(name=str(checked), safety_checker=word)
    drawing.draw_missing(lambda: loading.load_image_model(model), PROMPTS, out, model=model, seed=7, title="test")
    rows = [
        ImageRow(caption_id=row.caption_id, round=1, prompt=row.prompt, image=drawing.image_name(row.caption_id, 1))
        for row in PROMPTS
    ]
    return drawing.flagged(out, rows)


def pixels(out: Path) -> list[np.ndarray]:
    return [np.asarray(open_rgb(out / drawing.image_name(row.caption_id, 1))).astype(int) for row in PROMPTS]


def test_a_report_counts_flags_and_keeps_the_images(checked: Path, tmp_path: Path) -> None:
    rows = gallery_of(checked, tmp_path / "report", "report")
    assert [row.flagged for row in rows] == [False, False, True, False]
    assert [row.flagged for row in gallery_of(checked, tmp_path / "off", "off")] == [None] * 4
    assert apart(pixels(tmp_path / "report"), pixels(tmp_path / "off")) == 0


def test_a_checker_that_is_on_makes_what_it_flags_black(checked: Path, tmp_path: Path) -> None:
    rows = gallery_of(checked, tmp_path / "on", "on")
    gallery_of(checked, tmp_path / "report", "report")
    assert [row.flagged for row in rows] == [False, False, True, False]
    found, kept = pixels(tmp_path / "on"), pixels(tmp_path / "report")
    assert found[2].max() == 0 and kept[2].max() > 0
    assert apart(found[:2] + found[3:], kept[:2] + kept[3:]) == 0


def test_flags_are_those_of_diffusers_own_pipeline(checked: Path, tmp_path: Path) -> None:
    gallery_of(checked, tmp_path / "on", "on")
    model = tiny_diffusion.model(name=str(checked), safety_checker="on")
    seeds = [noise_seed(7, row.caption_id, row.round) for row in PROMPTS]
    theirs = loading.load_image_model(model).pipe(
        [row.prompt for row in PROMPTS],
        generator=generators(seeds),
        num_inference_steps=model.steps,
        guidance_scale=model.guidance,
        height=model.size,
        width=model.size,
    )
    assert theirs.nsfw_content_detected == [False, False, True, False]
    assert apart(pixels(tmp_path / "on"), [np.asarray(image).astype(int) for image in theirs.images]) <= 1


def test_flags_stay_out_of_the_images_and_of_the_folder_that_is_published(checked: Path, tmp_path: Path) -> None:
    gallery_of(checked, tmp_path / "arm", "report")
    assert [path.name for path in (tmp_path / "arm").iterdir()] == ["images"]
    assert about_png(tmp_path / "arm" / drawing.image_name(2, 1)).keys() == ABOUT


@pytest.mark.slow
def test_a_image_whose_flag_was_lost_is_drawn_again(checked: Path, tmp_path: Path) -> None:
    rows = gallery_of(checked, tmp_path / "arm", "report")
    shutil.rmtree(tmp_path / "arm-flags")
    assert [row.flagged for row in drawing.flagged(tmp_path / "arm", rows)] == [None] * 4
    assert gallery_of(checked, tmp_path / "arm", "report") == rows


def test_images_are_copied_with_their_flags(checked: Path, tmp_path: Path) -> None:
    rows = gallery_of(checked, tmp_path / "arm", "report")
    drawing.copy_images(rows, tmp_path / "arm", tmp_path / "other")
    assert drawing.flagged(tmp_path / "other", rows) == rows
    assert apart(pixels(tmp_path / "other"), pixels(tmp_path / "arm")) == 0


def test_a_checkpoint_without_a_checker_cannot_report(folder: Path) -> None:
    assert "has no safety_checker; set model.safety_checker to off" in refusal(folder, safety_checker="report")


# ------------------------------------------------------------------------------------------------ galleries


def draw_gallery(folder: Path, out: Path, loads: list, adapter: Path | None = None, **changes) -> None:
    model = tiny_diffusion.model(name=str(folder), batch_size=2, **changes)

    def opened():
        loads.append(model)
        return loading.load_image_model(model, adapter)

    drawing.draw_missing(opened, PROMPTS, out, model=model, seed=7, title="test", adapter=adapter)


def test_a_image_tells_what_it_was_made_of(folder: Path, tmp_path: Path) -> None:
    made = loading.load_image_model(tiny_diffusion.model(name=str(folder)), training=True)
    made.add_adapter(2, 2, ["to_q"], seed=0)
    made.save_adapter(tmp_path / "adapter")
    draw_gallery(folder, tmp_path / "out", [], adapter=tmp_path / "adapter", scheduler="euler", negative_prompt="dark")
    about = about_png(tmp_path / "out" / drawing.image_name(2, 1))
    assert (about["caption_id"], about["round"], about["prompt"]) == ("2", "1", "c d")
    assert about["seed"] == str(noise_seed(7, 2, 1))
    parameters = json.loads(about["parameters"])
    stated = {"name": str(folder), "revision": "main", "steps": 5, "guidance": 3.0, "eta": 0.0, "size": 16}
    stated |= {"scheduler": "euler", "negative_prompt": "dark", "dtype": "float32"}
    assert stated.items() <= parameters.items()
    assert len(parameters["adapter"]) == 16
    assert not parameters.keys() & {"device", "batch_size", "offload", "compile"}


def test_the_text_of_a_image_is_to_the_letter_what_it_always_was(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Else every image that was drawn before would be drawn again, and no hash would be what it was."""
    os.symlink(checkpoint_folder, tmp_path / "sd")
    model = tiny_diffusion.model(name="sd", eta=0.5, negative_prompt="dark")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        pipe = loading.load_image_model(model)
        drawing.draw_missing(lambda: pipe, PROMPTS[:1], Path("out"), model=model, seed=7, title="test")
    assert about_png(tmp_path / "out" / drawing.image_name(0, 1)) == {
        "caption_id": "0",
        "round": "1",
        "seed": "5719006569618633594",
        "prompt": "a cat",
        "parameters": '{"adapter": null, "dtype": "float32", "eta": 0.5, "guidance": 3.0, "name": "sd", '
        '"negative_prompt": "dark", "revision": "main", "safety_checker": "off", "scheduler": "ddim", "size": 16, '
        '"steps": 5, "vae_dtype": "same", "vae_tiling": false}',
    }


def test_drawing_goes_on_with_the_batches_that_are_missing(folder: Path, tmp_path: Path) -> None:
    loads: list = []
    draw_gallery(folder, tmp_path, loads)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    draw_gallery(folder, tmp_path, loads)
    assert len(loads) == 1  # all there: the model is not even loaded
    (tmp_path / drawing.image_name(3, 1)).unlink()
    kept = (tmp_path / drawing.image_name(0, 1)).stat().st_mtime_ns
    draw_gallery(folder, tmp_path, loads)
    assert len(loads) == 2
    assert (tmp_path / drawing.image_name(0, 1)).stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == whole


@pytest.mark.parametrize("change", [{"steps": 6}, {"guidance": 2.0}, {"scheduler": "pndm"}, {"negative_prompt": "x"}])
def test_a_image_of_other_parameters_is_not_taken_for_done(change: dict, folder: Path, tmp_path: Path) -> None:
    draw_gallery(folder, tmp_path, [])
    before = pixels(tmp_path)
    draw_gallery(folder, tmp_path, [], **change)
    assert apart(pixels(tmp_path), before) > 0


def test_a_image_drawn_more_sparingly_is_done(folder: Path, tmp_path: Path) -> None:
    loads: list = []
    draw_gallery(folder, tmp_path, loads)
    draw_gallery(folder, tmp_path, loads, attention_slicing=True, vae_slicing=True, offload=True, device="auto")
    assert len(loads) == 1


def test_rows_keep_the_checkers_word(tmp_path: Path) -> None:
    row = ImageRow(caption_id=1, round=1, prompt="a", image="a.png", flagged=True)
    write_rows(tmp_path / "rows.jsonl", [row])
    assert read_rows(tmp_path / "rows.jsonl", ImageRow) == [row]


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    assert "is no diffusers checkpoint: it has no model_index.json" in refusal(tmp_path)


def test_a_broken_index_is_named(copy: Path) -> None:
    (copy / "model_index.json").write_text("{")
    assert "model_index.json" in refusal(copy) and "is not JSON" in refusal(copy)


def test_another_pipeline_is_named(copy: Path) -> None:
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "PixArtAlphaPipeline"}))
    assert "is a PixArtAlphaPipeline, and there is no family for it; there are StableDiffusionPipeline, " in refusal(
        copy
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(part: str, copy: Path) -> None:
    shutil.rmtree(copy / part)
    assert f"has no folder {part}/" in refusal(copy)


def test_weights_that_are_missing_are_named(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "has no weights in unet/: a *.safetensors file is needed" in refusal(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "has unet as diffusion_pytorch_model.bin alone, a pickle" in refusal(copy)


def test_cut_off_weights_are_one_line(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cannot be loaded" in refusal(copy)


def test_a_name_that_no_hub_could_have_is_told(tmp_path: Path) -> None:
    assert "is neither a folder here nor a name that the hub could have" in refusal(tmp_path / "a" / "b" / "c")


@pytest.fixture(scope="module")
def told(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of models of a hub of our own, and then offline, by programs of their own.

    The hub's address is read once per process.
    """
    cache = tmp_path_factory.mktemp("cache")
    known = [("gated/model", "main"), ("no/such", "main"), ("good/model", "v9"), ("no/index", "main")]
    with hub(folder) as server:
        first = server.ask(*known, ("good/model", "main"), cache=cache)
    later = server.ask(("good/model", "main"), ("other/model", "main"), cache=cache, offline=True)
    names = ("gated", "no such", "no revision", "no index", "good", "good offline", "other offline", "cache")
    return dict(zip(names, [*first, *later, str(cache)], strict=True))


@pytest.mark.slow
def test_a_gated_model_says_where_its_terms_are(told: dict[str, str]) -> None:
    terms = "accept its terms at https://huggingface.co/gated/model, then `hf auth login`"
    assert told["gated"] == f"model.name: 'gated/model' is gated: {terms}"


@pytest.mark.slow
def test_a_misspelt_model_is_told(told: dict[str, str]) -> None:
    assert "'no/such' is no folder here, and the hub has no such model; is it misspelt" in told["no such"]


@pytest.mark.slow
def test_a_revision_that_is_not_there_is_told(told: dict[str, str]) -> None:
    assert told["no revision"] == "model.revision: 'good/model' has no revision 'v9'"


@pytest.mark.slow
def test_a_hub_model_that_is_no_checkpoint_is_told(told: dict[str, str]) -> None:
    assert "'no/index' is no diffusers checkpoint: it has no model_index.json" in told["no index"]


@pytest.mark.slow
def test_a_model_that_was_fetched_once_is_loaded_without_internet(told: dict[str, str]) -> None:
    assert (told["good"], told["good offline"]) == ("loaded", "loaded")


@pytest.mark.slow
def test_without_internet_model_cache_and_command_are_named(told: dict[str, str]) -> None:
    assert "'other/model' is neither a folder here nor in the hub cache" in told["other offline"]
    fetch = "`hf download other/model --revision main` fetches it into the hub cache"
    assert f"{fetch} ({told['cache']}; HF_HOME moves it)" in told["other offline"]


# ------------------------------------------------------------------------------------------------ the optimiser


def test_adamw_is_torchs_own() -> None:
    config = tiny_diffusion.finetune(learning_rate=0.1, weight_decay=0.01)
    weight = torch.nn.Parameter(torch.ones(3))
    made = optimiser.make(config, [weight])
    assert type(made) is torch.optim.AdamW
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.1, 0.01)


def test_8_bit_adam_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"adamw8bit needs `pip install bitsandbytes`"):
        optimiser.make(tiny_diffusion.finetune(optimiser="adamw8bit"), [])


def test_8_bit_adam_keeps_moments_in_bytes() -> None:
    pytest.importorskip("bitsandbytes")
    weight = torch.nn.Parameter(torch.ones(128, 128))
    made = optimiser.make(tiny_diffusion.finetune(optimiser="adamw8bit", learning_rate=0.1), [weight])
    weight.square().sum().backward()
    made.step()
    assert made.state[weight]["state1"].dtype == torch.uint8
    assert (weight < 1).all()


def test_nothing_is_logged_of_a_plain_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        drawn(folder)
    assert [record for record in caplog.records if record.name.startswith("t2i_feedback")] == []


@pytest.mark.parametrize("steps", [5, 6, 10])
def test_a_first_step_from_pure_noise_can_be_drawn_at_full_eta(steps):
    """The shipped model's first timestep has no signal at all: sigma^2 = 1 - a_prev, up to rounding."""
    model = tiny_diffusion.model(name="models/postcards/sd", size=64, steps=steps, guidance=1.0, eta=1.0)
    [image] = loading.load_image_model(model).draw(["a red house"], [1])
    assert image.getextrema() != ((0, 0),) * 3


def test_targets_that_the_unet_does_not_have_are_told_with_those_that_it_has(folder: Path) -> None:
    pipe = loading.load_image_model(tiny_diffusion.model(name=str(folder)), training=True)
    with pytest.raises(UserError, match=r"no modules that end in q_proj; there are .*conv1, .*to_k, to_out\.0, to_q"):
        pipe.add_adapter(4, 4, ["q_proj"], 0)


def test_an_adapter_of_a_model_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    other = loading.load_image_model(tiny_diffusion.model(name="models/postcards/sd", size=64), training=True)
    other.add_adapter(4, 4, ["to_q"], 0)
    other.save_adapter(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"is no adapter of .*dvc repro finetune"):
        loading.load_image_model(tiny_diffusion.model(name=str(folder)), tmp_path / "adapter")


@pytest.mark.slow
def test_an_adapter_is_saved_as_the_same_bytes_by_every_process(folder: Path, tmp_path: Path) -> None:
    """Whatever order a process has for its sets and maps: DVC would take other bytes for another adapter."""
    program = """
import sys
from pathlib import Path
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from t2i_feedback.image_models.lora import add_adapter, save_adapter
unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
add_adapter(unet, 2, 4, ["to_q", "to_k", "to_v", "to_out.0", "conv1"], 1)
for again in "1234":
    save_adapter(unet, Path(sys.argv[2]) / again, StableDiffusionPipeline, "unet")
"""
    for seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY / "src")}
        subprocess.run([sys.executable, "-c", program, folder, tmp_path / seed], env=environment, check=True)
    written = [file.read_bytes() for file in tmp_path.glob(f"*/*/{ADAPTER_WEIGHTS}")]
    assert (len(written), len(set(written))) == (8, 1)


# ------------------------------------------------------------------------------------------------ windows, variants


def without_window(folder: Path) -> Path:
    """The checkpoint, whose tokenizer does not say how much it takes."""
    path = folder / "tokenizer/tokenizer_config.json"
    known = json.loads(path.read_text())
    known.pop("model_max_length", None)
    path.write_text(json.dumps(known))
    return folder


def test_a_tokenizer_without_a_bound_has_the_text_encoders(checkpoint_folder, tmp_path):
    folder = without_window(shutil.copytree(checkpoint_folder, tmp_path / "copy"))
    positions = json.loads((folder / "text_encoder/config.json").read_text())["max_position_embeddings"]
    model = tiny_diffusion.model(name=str(folder))
    tokenizer = loading.load_tokenizer(model)
    assert tokenizer.model_max_length == loading.load_image_model(model).pipe.tokenizer.model_max_length == positions
    assert base.tokens_lost(tokenizer, ["a " * (positions + 20)])[0] > 0


def as_variant(folder: Path, name: str) -> Path:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", f".{name}.safetensors")))
    return folder


def test_a_variant_that_is_there_alone_is_named_and_loaded(checkpoint_folder, tmp_path):
    folder = as_variant(shutil.copytree(checkpoint_folder, tmp_path / "copy"), "fp16")
    with pytest.raises(UserError, match=r"model\.variant: .* set model\.variant to fp16"):
        loading.load_image_model(tiny_diffusion.model(name=str(folder)))
    assert loading.load_image_model(tiny_diffusion.model(name=str(folder), variant="fp16")).network is not None
    with pytest.raises(UserError, match=r"model\.variant: .* set model\.variant to"):
        loading.load_image_model(tiny_diffusion.model(name=str(checkpoint_folder), variant="fp16"))


def test_a_variant_that_is_not_named_changes_no_images_name():
    plain = decisive(tiny_diffusion.model())
    assert "variant" not in plain and "variant" in decisive(tiny_diffusion.model(variant="fp16"))
