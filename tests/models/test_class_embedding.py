"""A trained U-Net for other classes: what it predicts for classes that it keeps doesn't change."""

import pytest
import torch
from tiny_models import make_unet

from diffusion_bridge_vq.models import replace_classes

X, T = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5, 900])


def predict(unet, number: int | None) -> torch.Tensor:
    labels = None if number is None else torch.full((3,), number)
    with torch.no_grad():
        return unet(X, T, class_labels=labels).sample


@pytest.fixture
def unet():
    """Three classes, numbers 0 to 2, and the null class, 3, which all differ."""
    torch.manual_seed(0)
    return make_unet(sample_size=4, num_class_embeds=4).eval()


def test_kept_classes_and_the_null_class_stay(unet):
    before = [predict(unet, number) for number in range(4)]
    assert not torch.allclose(before[0], before[3], atol=1e-3)
    replace_classes(unet, 5, {0: 2, 4: 0})
    after = [predict(unet, number) for number in range(6)]
    assert all(map(torch.equal, (after[0], after[4], after[5]), (before[2], before[0], before[3])))
    assert unet.class_embedding.weight[1:4].detach().std() == pytest.approx(1, abs=0.2)  # drawn as in a fresh table
    assert unet.config.num_class_embeds == 6 and unet.class_embedding.weight.requires_grad


def test_without_classes_it_is_its_null_class(unet):
    before = predict(unet, 3)
    replace_classes(unet, None)
    torch.testing.assert_close(predict(unet, None), before)


def test_classes_for_a_network_without(unet):
    replace_classes(unet, None)
    before = predict(unet, None)
    replace_classes(unet, 2)
    assert torch.equal(predict(unet, 2), before)
    assert not torch.equal(predict(unet, 0), predict(unet, 1))


def test_it_is_saved_and_loaded_as_what_it_became(unet, tmp_path):
    replace_classes(unet, 5, {1: 2})
    unet.save_pretrained(tmp_path)
    assert torch.equal(predict(type(unet).from_pretrained(tmp_path), 1), predict(unet, 1))


def test_classes_that_are_no_table_are_refused():
    with pytest.raises(ValueError, match="`class_embed_type` 'timestep', expected a table"):
        replace_classes(make_unet(class_embed_type="timestep"), 3)
