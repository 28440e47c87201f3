"""An adapter merged into its layers: the same images, the same gradients, and nothing left behind."""

import pytest
import tiny_diffusion
import torch

from t2i_feedback.image_models import merging as module
from t2i_feedback.image_models.lora import add_adapter
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
