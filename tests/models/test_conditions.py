"""Vectors over the classes as conditions of a U-Net, and words as classes."""

import pytest
import torch
from diffusers import UNet2DModel
from tiny_models import make_unet

from diffusion_bridge_vq.models import choose_examples, find_vocabulary, take_several_classes, words_to_labels
from diffusion_bridge_vq.models.conditions import split_words
from diffusion_bridge_vq.models.denoiser import call_network

X, T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])


@pytest.fixture
def unet():
    """Four classes, the last of which is the null class."""
    torch.manual_seed(0)
    unet = make_unet(sample_size=4, num_class_embeds=4).eval()
    take_several_classes(unet)
    return unet


@torch.no_grad()
def test_one_class_is_its_number(unet):
    for number in range(4):
        row = torch.zeros(2, 4)
        row[:, number] = 1
        by_number = call_network(unet, X, T, torch.full((2,), number))
        torch.testing.assert_close(call_network(unet, X, T, row), by_number)


@torch.no_grad()
def test_several_are_the_weighted_sum_of_their_rows(unet):
    """As one class whose row is that sum."""
    weights = torch.tensor([1.0, -0.5, 2.0, 0.0])
    found = call_network(unet, X, T, weights.repeat(2, 1))
    unet.class_embedding.weight[0] = weights @ unet.class_embedding.weight
    torch.testing.assert_close(found, call_network(unet, X, T, torch.zeros(2, dtype=torch.long)))


@torch.no_grad()
def test_guidance_starts_from_the_null_class(unet):
    labels = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0]])
    null, plain = call_network(unet, X, T, torch.full((2,), 3)), call_network(unet, X, T, labels)
    torch.testing.assert_close(call_network(unet, X, T, labels, 2.5), null + 2.5 * (plain - null))


@torch.no_grad()
def test_it_is_saved_as_any_u_net(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path)
    number = torch.tensor([1, 2])
    assert type(stock.class_embedding) is torch.nn.Embedding
    assert torch.equal(stock(X, T, number).sample, unet(X, T, number).sample)


def test_examples_are_spread_and_have_words_that_many_texts_have():
    many = [f"rare{i} thing" for i in range(40)] + ["common thing", "a common thing"] + [f"word{i}" for i in range(38)]
    found = choose_examples(many)
    assert len(found) == 8 and [text for text in found if "common" in text] == ["common thing"]
    assert [many.index(text) // 10 for text in found] == list(range(8))
    styles = [f"{name}, {style}" for name in "abcdefgh" for style in ("noto", "twemoji")]
    assert choose_examples(styles) == [f"{name}, {('noto', 'twemoji')[i % 2]}" for i, name in enumerate("abcdefgh")]
    assert choose_examples(["red cat", "Cat; red", "cat"]) == ["red cat", "cat"] and choose_examples(["", "-"]) == []


def test_words_of_texts():
    assert split_words("PERSON: red-hair, Red") == ["person", "red", "hair"]
    words = find_vocabulary(["purple heart, noto", "Heart, fluent-3d"])
    assert words == ["3d", "fluent", "heart", "noto", "purple"]
    labels = words_to_labels(["purple heart", "", "fluent 3D heart"], words)
    assert labels.tolist() == [[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]]


def test_unknown_words():
    words = ["heart", "purple"]
    with pytest.raises(ValueError, match=r"doesn't know 'heartt', 'cat'; it knows 2 words. Did you mean 'heart'"):
        words_to_labels(["purple heartt cat"], words)
    assert words_to_labels(["purple heartt", "cat"], words, skip_unknown=True).tolist() == [[0, 1, 0], [0, 0, 1]]
