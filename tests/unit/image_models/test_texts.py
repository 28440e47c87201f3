"""Attention to a text once for neighbours that have it: the same output, the same gradients, fewer rows."""

import pytest
import tiny_diffusion
import torch
from diffusers import UNet2DConditionModel

from t2i_feedback.image_models import texts
from t2i_feedback.image_models.lora import add_adapter

ROWS = torch.tensor([-1, -1, -1, -1, 3, 3, 0, 0])  # neighbours in twos, the first four as two pairs


@pytest.fixture(params=["tiny", "models/postcards/sd"])  # the shipped one adds its pooled text to the timestep
def unet(request, tmp_path):
    if request.param == "tiny":
        return tiny_diffusion.pipeline(tmp_path).unet
    return UNet2DConditionModel.from_pretrained(request.param, subfolder="unet").float().requires_grad_(False).eval()


def call(unet, once):
    """Output and adapter gradients of a batch whose rows have three texts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(ROWS), 4, 8, 8, generator=generator)
    embeddings = torch.randn(5, 6, unet.config.cross_attention_dim, generator=generator)[ROWS + 1]
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    if once:
        with texts.OncePerText(unet).sharing(ROWS):
            output = unet(x, 500, encoder_hidden_states=embeddings).sample
    else:
        output = unet(x, 500, encoder_hidden_states=embeddings).sample
    return output, torch.autograd.grad(output.square().mean(), parameters)


def adapted(unet):
    """With an adapter that has learnt something, on layers that see the text among others."""
    for parameter in add_adapter(unet, 2, 2, ["to_q", "to_k", "to_v"], 1):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return unet


def test_the_output_and_an_adapters_gradients_stay_the_same(unet):
    adapted(unet)
    expected, gradients = call(unet, once=False)
    found, same = call(unet, once=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(same, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


def texts_seen(unet):
    """A list that grows by the number of texts that the first cross-attention projects in a call of `unet`."""
    seen = []
    layer = texts.cross_attentions(unet)[0].to_k
    layer.register_forward_hook(lambda layer, given, output: seen.append(len(given[0])))
    return seen


def test_neighbours_project_their_text_once_and_all_rows_do_afterwards(unet):
    adapted(unet)
    seen = texts_seen(unet)
    call(unet, once=True)
    call(unet, once=False)
    assert seen == [4, 8]


def test_rows_without_a_neighbour_of_the_same_text_share_nothing(unet):
    seen = texts_seen(unet)
    given = torch.zeros(3, 6, unet.config.cross_attention_dim)
    with torch.no_grad(), texts.OncePerText(unet).sharing(torch.tensor([1, 1, 2])):
        unet(torch.zeros(3, 4, 8, 8), 500, encoder_hidden_states=given)
    assert seen == [3]


def test_self_attention_is_left_alone(unet):
    mine = {id(layer) for layer in texts.cross_attentions(unet)}
    names = {name for name, module in unet.named_modules() if id(module) in mine}
    assert {name.rpartition(".")[2] for name in names} == {"attn2"}


def test_gradient_checkpointing_runs_every_row_so_that_its_second_pass_agrees_with_the_first(unet):
    adapted(unet)
    expected = call(unet, once=False)
    unet.enable_gradient_checkpointing()
    unet.train()  # diffusers checkpoints whenever gradients are wanted; train() changes nothing else here
    found = call(unet, once=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_drawing_shares_texts_under_gradient_checkpointing_too(unet):
    unet.enable_gradient_checkpointing()
    once, seen = texts.OncePerText(unet), texts_seen(unet)
    given = torch.zeros(8, 6, unet.config.cross_attention_dim)
    with torch.no_grad(), once.sharing(ROWS):
        unet(torch.zeros(8, 4, 8, 8), 500, encoder_hidden_states=given)
    assert seen == [4]
