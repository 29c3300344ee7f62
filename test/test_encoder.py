"""The encoder: V-JEPA 2's numbers, every size, every kind of attention, and prepared weights that never go stale."""

import pytest
import torch

from thinkjepa_ros.jepa.encoder import MEAN, STD, Encoder, EncoderConfig, pool


def small(seed: int = 0, **config: object) -> Encoder:
    """A small encoder with weights large enough to be seen, frozen."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(**{"image_size": 64, "width": 48, "depth": 2, "heads": 2, **config}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return encoder.eval().requires_grad_(False)


def video(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tubelet", [1, 2])
def test_patch_embedding_equals_a_convolution_of_normalised_pixels(tubelet: int) -> None:
    encoder, clip = small(tubelet=tubelet), video(2, 2 * tubelet, 48, 80)
    x = ((clip.double() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)
    weight = encoder.patch_embed.weight.double().view(48, 3, tubelet, 16, 16)
    wanted = torch.nn.functional.conv3d(x, weight, encoder.patch_embed.bias.double(), stride=(tubelet, 16, 16)).flatten(
        2
    )
    tokens, *grid = encoder.embed(clip)
    assert grid == [2, 3, 5]
    assert torch.allclose(tokens.double(), wanted.mT, atol=1e-5)


def test_pooling_averages_neighbours_and_keeps_their_order() -> None:
    x = torch.arange(16.0)[:, None]
    assert pool(x, 4, 2)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
