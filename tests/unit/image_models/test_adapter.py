"""An adapter merged into its layers: the same images, the same gradients, and nothing left behind."""

import json
import re
from pathlib import Path

import pytest
import tiny_diffusion
import torch
import workplaces
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2i_feedback import params
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.image_models import merging as module
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.image_models.lora import WITH_ALPHAS, add_adapter, load_adapter
from t2i_feedback.image_models.merging import Adapter

TARGETS = ["to_q", "to_k", "to_out.0", "conv1", "conv_shortcut", "time_emb_proj"]  # linear, 3 x 3, 1 x 1


@pytest.fixture
def unet(tmp_path):
    """With an adapter that has learnt something."""
    unet = tiny_diffusion.pipeline(tmp_path).unet
    for parameter in add_adapter(unet, 2, 4, TARGETS, 1):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return unet


def call(unet):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 8, generator=generator)
    text = torch.randn(3, 6, unet.config.cross_attention_dim, generator=generator)
    return unet(x, 500, encoder_hidden_states=text).sample


def gradients(unet):
    return [parameter.grad for parameter in unet.parameters() if parameter.requires_grad]


def test_the_output_and_the_adapters_gradients_are_those_of_the_adapter_itself(unet):
    expected = call(unet)
    expected.square().mean().backward()
    wanted = gradients(unet)
    unet.zero_grad()
    with Adapter(unet).merged():
        found = call(unet)
        found.square().mean().backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert all(float(gradient.abs().max()) > 0 for gradient in wanted)
    torch.testing.assert_close(gradients(unet), wanted, atol=1e-6, rtol=1e-3)


def test_gradients_of_several_batches_add_up_and_to_those_that_were_there(unet):
    adapter = Adapter(unet)
    with adapter.merged():
        call(unet).square().mean().backward()
    once = [gradient.clone() for gradient in gradients(unet)]
    with adapter.merged():
        for _ in range(2):
            call(unet).square().mean().backward()
    torch.testing.assert_close(gradients(unet), [3 * gradient for gradient in once], atol=1e-6, rtol=1e-3)


def test_a_merged_layer_passes_its_adapter_by(unet):
    layer, seen = Adapter(unet).layers[0][0], []
    layer.lora_A["default"].register_forward_hook(lambda *given: seen.append(1))
    with Adapter(unet).merged(), torch.no_grad():
        call(unet)
    assert not seen
    call(unet)
    assert seen


def test_afterwards_weights_and_output_are_bit_for_bit_what_they_were(unet):
    adapter = Adapter(unet)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    expected = call(unet)
    with pytest.raises(KeyboardInterrupt), adapter.merged():
        raise KeyboardInterrupt
    with adapter.merged(), adapter.base():
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(call(unet), expected)
    assert not any(parameter.requires_grad for name, parameter in unet.named_parameters() if "lora" not in name)


def test_the_base_is_the_unet_without_its_adapter_merged_or_not(unet):
    adapter = Adapter(unet)
    unet.disable_adapters()
    expected = call(unet)
    unet.enable_adapters()
    with adapter.base():
        assert torch.equal(call(unet), expected)
    with adapter.merged():
        adapted = call(unet)
        with adapter.base():
            assert torch.equal(call(unet), expected)
        assert torch.equal(call(unet), adapted)
    assert not torch.equal(adapted, expected)


def test_asking_the_base_between_passes_leaves_the_gradients_as_they_are(unet):
    adapter = Adapter(unet)
    call(unet).square().mean().backward()
    wanted = gradients(unet)
    unet.zero_grad()
    with adapter.merged():
        output = call(unet)
        with torch.no_grad(), adapter.base():
            call(unet)
        output.square().mean().backward()
    torch.testing.assert_close(gradients(unet), wanted, atol=1e-6, rtol=1e-3)


def test_what_half_precision_would_round_away_is_not_merged(unet):
    adapter = Adapter(unet.half())
    with adapter.merged():
        pass
    assert adapter.layers == []


def test_large_layers_are_merged_for_drawing_alone(unet, monkeypatch):
    adapter = Adapter(unet)
    largest = max(own.numel() for _, own in adapter.layers)
    monkeypatch.setattr(module, "LARGEST", largest - 1)
    with adapter.merged():
        assert {layer.merged for layer, own in adapter.layers if own.numel() == largest} == {False}
        assert {layer.merged for layer, own in adapter.layers if own.numel() < largest} == {True}
    with torch.no_grad(), adapter.merged():
        assert all(layer.merged for layer, _ in adapter.layers)


def test_gradients_come_together_from_layers_that_are_merged_and_those_that_are_not(unet, monkeypatch):
    call(unet).square().mean().backward()
    wanted = gradients(unet)
    unet.zero_grad()
    adapter = Adapter(unet)
    monkeypatch.setattr(module, "LARGEST", sorted(own.numel() for _, own in adapter.layers)[len(adapter.layers) // 2])
    with adapter.merged():
        call(unet).square().mean().backward()
    torch.testing.assert_close(gradients(unet), wanted, atol=1e-6, rtol=1e-3)


# ------------------------------------------------------------------------------------------------ elsewhere

# Fields of LoraConfig in PEFT 0.18.1 (src/peft/tuners/lora/config.py and src/peft/config.py at its tag), as far as they
# may stand in a file: what is written must be among them.
OF_PEFT_0_18 = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_config", "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "corda_config",
    "use_dora", "alora_invocation_tokens", "use_qalora", "qalora_group_size", "layer_replication", "lora_bias",
    "target_parameters", "arrow_config", "ensure_weight_tying", "runtime_config",
}  # fmt: skip


def saved(folder, alpha=4):
    """A pipeline with an adapter that has learnt something, and the folder that it was saved in."""
    pipe = tiny_diffusion.pipeline(folder / "model")
    for parameter in add_adapter(pipe.unet, 2, alpha, TARGETS, 1):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    tiny_diffusion.image_model(pipe).save_adapter(folder / "lora")
    return pipe, folder / "lora"


def metadata(file):
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["lora_adapter_metadata"])


def test_the_settings_are_those_that_older_versions_know(tmp_path):
    _, folder = saved(tmp_path)
    written = metadata(folder / ADAPTER_WEIGHTS)
    assert written == {"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": sorted(TARGETS)}
    assert {key.partition(".")[2] for key in written} <= OF_PEFT_0_18


def test_the_file_with_alphas_is_the_same_adapter_to_diffusers_own_converter(tmp_path):
    pipe, folder = saved(tmp_path)
    expected = call(pipe.unet)
    for name in (ADAPTER_WEIGHTS, WITH_ALPHAS):
        fresh = tiny_diffusion.pipeline(tmp_path / "model")
        base = call(fresh.unet)
        fresh.load_lora_weights(folder, weight_name=name)
        assert not torch.allclose(base, expected, atol=1e-4)
        torch.testing.assert_close(call(fresh.unet), expected, atol=1e-5, rtol=1e-4)
    names = set(load_file(folder / WITH_ALPHAS))
    assert all(name.startswith("lora_unet_") for name in names)
    assert len([name for name in names if name.endswith(".alpha")]) * 3 == len(names)


def test_settings_of_a_newer_version_are_one_line(tmp_path):
    _, folder = saved(tmp_path)
    file = folder / ADAPTER_WEIGHTS
    newer = {"lora_adapter_metadata": json.dumps(metadata(file) | {"unet.use_tomorrow": True})}
    save_file(load_file(file), file, metadata=newer)
    with pytest.raises(UserError, match=r"does not know \(use_tomorrow\): a newer one wrote it"):
        load_adapter(tiny_diffusion.pipeline(tmp_path / "model"), folder, "tiny")


@pytest.mark.parametrize("content", [b"", b"rubbish" * 20])
def test_an_adapter_that_is_damaged_or_gone_is_one_line(tmp_path, content):
    pipe, folder = saved(tmp_path)
    (folder / ADAPTER_WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read"):
        load_adapter(pipe, folder, "tiny")
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"is missing: run `dvc repro finetune`"):
        load_adapter(pipe, folder, "tiny")


@pytest.mark.slow
def test_the_lines_of_the_docs_draw_with_a_saved_adapter(tmp_path, monkeypatch):
    workplaces.enter(tmp_path, monkeypatch)
    made = load_image_model(params.load().model, training=True)
    for parameter in made.add_adapter(2, 4, ["to_out.0"], 1):
        parameter.data += 0.1
    made.save_adapter(tmp_path / "models/lora")
    [lines] = re.findall(r"```python\n(.*?)```", (workplaces.REPOSITORY / "docs/bigger-models.md").read_text(), re.S)
    assert len([line for line in lines.splitlines() if line]) <= 6
    torch.manual_seed(0)
    exec(lines, {})
    torch.manual_seed(0)
    exec("\n".join(line for line in lines.splitlines() if "load_lora" not in line).replace("with-", "without-"), {})
    drawn, plain = open_rgb(Path("with-adapter.png")), open_rgb(Path("without-adapter.png"))
    assert drawn.size == (64, 64) and drawn.tobytes() != plain.tobytes()
