"""The law that a PixelCNN writes down, whole maps against one code at a time, and what `generate` draws from it."""

import itertools
import math

import pytest
import torch

from diffusion_bridge_vq import PixelCNNPrior

SIZE = (4, 5)


def make_prior(seed: int = 0, **changes) -> PixelCNNPrior:
    """An untrained network in float64, sharpened, so that its law is far from uniform."""
    torch.manual_seed(seed)
    config = {"num_codes": 3, "width": 8, "num_layers": 4, "kernel_size": 3, "sample_size": 2} | changes
    prior = PixelCNNPrior(**config).double().eval().requires_grad_(False)
    prior.head[-1].weight.mul_(8)
    for layer in prior.layers:
        layer.vertical.weight.mul_(2)  # what comes from far away shall be well above rounding
        if config.get("num_class_embeds"):
            layer.classes.weight.normal_()
    return prior


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_codes(*shape: int, num_codes: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(num_codes, shape, generator=rng(seed))


def all_maps(num_codes: int, height: int, width: int) -> torch.Tensor:
    """(num_codes^(height width), height, width)."""
    maps = itertools.product(range(num_codes), repeat=height * width)
    return torch.tensor(list(maps)).reshape(-1, height, width)


def law(prior: PixelCNNPrior, class_labels: int | None = None) -> torch.Tensor:
    """Probability of every 2 x 2 map of 3 codes, in the order of `all_maps`."""
    maps = all_maps(3, 2, 2)
    labels = None if class_labels is None else torch.full((len(maps),), class_labels)
    return prior.log_prob(maps, labels).sum(dim=(1, 2)).exp()


def indices(codes: torch.Tensor) -> torch.Tensor:
    """Where 2 x 2 maps stand in `all_maps`."""
    return codes.flatten(1) @ torch.tensor([27, 9, 3, 1])


def chi_squared(codes: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic as a standard normal number (Wilson-Hilferty), rare maps taken together."""
    counts = torch.bincount(indices(codes), minlength=81).double()
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * len(codes)
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic, freedom = ((counts - expected).square() / expected).sum().item(), len(counts) - 1
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


# ------------------------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_logits_depend_on_all_codes_before_and_on_no_other(kernel_size):
    """By gradient, through the vectors that stand for the codes: for every pair of positions of a 4 x 5 map."""
    prior, seen = make_prior(kernel_size=kernel_size, num_layers=5), []

    def keep(module, arguments, output):
        seen.append(output.requires_grad_())

    prior.embedding.register_forward_hook(keep)
    logits = prior(random_codes(1, *SIZE)).logits.flatten(2)  # (1, K, 20)
    gradients = torch.stack(
        [torch.autograd.grad(logits[..., p].square().sum(), seen, retain_graph=True)[0] for p in range(20)]
    )
    depends = gradients.reshape(20, 20, -1).abs().amax(dim=2)
    assert torch.equal(depends > 1e-12, torch.ones(20, 20).tril(-1).bool())


def test_a_changed_code_changes_all_logits_after_it_and_none_before():
    prior, codes = make_prior(), random_codes(1, *SIZE)
    before = prior(codes).logits.flatten(2)
    for position in range(20):
        changed = codes.clone()
        changed.view(-1)[position] += 1
        changed %= 3
        difference = (prior(changed).logits.flatten(2) - before).abs().amax(dim=(0, 1))
        assert difference[: position + 1].max() == 0
        assert (difference[position + 1 :] > 1e-12).all()


def test_the_receptive_field_grows_by_a_row_and_a_column_a_layer():
    """With 2 layers, first window 3: two rows above, two columns to either side; and the field has no hole."""
    prior, codes = make_prior(num_layers=2), random_codes(1, 5, 7)
    before = prior(codes).logits[..., 3, 3]
    seen = torch.zeros(5, 7, dtype=torch.bool)
    for i, j in itertools.product(range(5), range(7)):
        changed = codes.clone()
        changed[0, i, j] = (changed[0, i, j] + 1) % 3
        seen[i, j] = (prior(changed).logits[..., 3, 3] - before).abs().max() > 1e-12
    # the row itself: two to the left; above: the vertical stack's window, moved along by the horizontal one
    expected = torch.tensor(
        [[0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0], [0] * 7]
    ).bool()
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("class_labels", [None, 0, 2])
def test_probabilities_of_all_maps_sum_to_one(class_labels):
    prior = make_prior(num_class_embeds=None if class_labels is None else 3)
    probabilities = law(prior, class_labels)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert probabilities.max() > 4 / 81  # far from uniform


def test_log_prob_is_that_of_the_logits():
    prior, codes = make_prior(), random_codes(2, *SIZE)
    expected = torch.log_softmax(prior(codes, return_dict=False)[0], dim=1)
    log_prob = prior.log_prob(codes)
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        assert log_prob[b, i, j].item() == pytest.approx(expected[b, codes[b, i, j], i, j].item(), abs=1e-12)
    half = prior.to(torch.bfloat16)
    assert half.log_prob(codes).dtype == torch.float32
    assert (half.log_prob(codes) - log_prob).abs().max() < 0.5


def test_classes():
    prior, codes = make_prior(num_class_embeds=4), random_codes(3, 2, 2)
    together = prior(codes, torch.tensor([2, 0, 1])).logits
    for b, label in enumerate([2, 0, 1]):
        assert torch.allclose(together[b], prior(codes[b : b + 1], torch.tensor([label])).logits[0])
    assert torch.equal(prior(codes).logits, prior(codes, torch.full((3,), 3)).logits)  # no label: the null class
    laws = torch.stack([law(prior, label) for label in range(4)])
    assert torch.pdist(laws, p=1).min() > 0.05
    fresh = PixelCNNPrior(num_codes=3, width=8, num_layers=2, num_class_embeds=4).eval()
    assert torch.equal(fresh(codes, torch.tensor([2, 0, 1])).logits, fresh(codes).logits)


def test_size_of_the_papers_network():
    """
    95.8M weights with those under mask A, which this network doesn't have: at each of 512 x 1024 channel pairs, a row
    of 7 in the vertical window of the first layer and one position in the horizontal one.
    """
    with torch.device("meta"):
        prior = PixelCNNPrior(num_codes=256, width=512, num_layers=15)
    weights = sum(p.numel() for p in prior.parameters())
    assert weights + 512 * 1024 * (7 + 1) == pytest.approx(95.8e6, rel=1e-3)


def test_dropout_is_off_in_eval():
    prior, codes = make_prior(dropout=0.5), random_codes(1, 2, 2)
    assert torch.equal(prior(codes).logits, prior(codes).logits)
    prior.train()
    assert not torch.equal(prior(codes).logits, prior(codes).logits)


# ------------------------------------------------------------------------------------------------------ drawing


def naive(
    prior: PixelCNNPrior, generator: torch.Generator, codes: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """One forward per position; the code is drawn whose exponential clock, of its probability as rate, rings first."""
    codes = codes.masked_fill(mask, 0)
    for i in range(codes.shape[1]):
        noise = torch.empty(len(codes), codes.shape[2], 3).exponential_(generator=generator)
        for j in range(codes.shape[2]):
            rates = (prior(codes).logits[:, :, i, j] / temperature).softmax(dim=1)
            codes[:, i, j] = torch.where(mask[:, i, j], (noise[:, j] / rates).argmin(dim=1), codes[:, i, j])
    return codes


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("known", ["nothing", "some", "rows", "end"])
def test_cached_drawing_equals_a_forward_per_position(kernel_size, known):
    """Codes are the same, and so are the logits at every position that was drawn."""
    prior, codes = make_prior(kernel_size=kernel_size, num_layers=3), random_codes(3, *SIZE)
    mask = torch.ones(3, *SIZE, dtype=torch.bool)
    if known == "some":
        mask = torch.rand(3, *SIZE, generator=rng(1)) < 0.4
    elif known == "rows":
        mask[:, [0, 2]] = False
    elif known == "end":
        mask[:, 2:] = False
        mask[:, 1, 3:] = False
    for temperature in (1.0, 0.7):
        seen = []
        hook = prior.head.register_forward_hook(lambda module, arguments, output, seen=seen: seen.append(output))
        drawn = prior.generate(3, rng(5), temperature, codes=codes, mask=mask)
        hook.remove()
        assert torch.equal(drawn, naive(prior, rng(5), codes, mask, temperature))
        assert torch.equal(drawn[~mask], codes[~mask])
        full = prior(drawn).logits[:, :, mask.any(dim=0)]
        torch.testing.assert_close(torch.cat(seen, dim=2)[..., 0], full, rtol=1e-12, atol=1e-12)


def test_drawing_costs_about_one_forward():
    """Columns that the vertical convolutions put out, and positions of the horizontal ones: each once."""
    prior, count = make_prior(sample_size=SIZE), {"vertical": 0, "horizontal": 0}

    def counter(name):
        def add(module, arguments, output):
            count[name] += output.shape[2] * output.shape[3]

        return add

    for layer in prior.layers:
        for name in count:
            getattr(layer, name).register_forward_hook(counter(name))
    prior.generate(2)
    assert count == {"vertical": 4 * 20, "horizontal": 4 * 20}
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[2, 1] = True
    count.update(vertical=0, horizontal=0)
    prior.generate(2, codes=random_codes(2, *SIZE), mask=mask)
    assert count == {"vertical": 4 * 15, "horizontal": 4 * 2}  # no row after the last unknown, no column either


def test_draws_follow_the_law():
    """10,000 maps of 2 x 2 against the enumeration of all 81; and the statistic sees another law."""
    prior = make_prior()
    codes = prior.generate(10_000, rng())
    assert chi_squared(codes, law(prior)) < 4
    assert chi_squared(codes, law(make_prior(seed=1))) > 20


def test_draws_of_a_class_follow_its_law():
    prior = make_prior(num_class_embeds=3)
    labels = torch.arange(16_000) % 2
    codes = prior.generate(16_000, rng(), class_labels=labels)
    for label in (0, 1):
        assert chi_squared(codes[labels == label], law(prior, label)) < 4
    assert chi_squared(codes[labels == 0], law(prior, 1)) > 20
    assert chi_squared(prior.generate(8_000, rng()), law(prior, 2)) < 4  # no label: the null class


@pytest.mark.parametrize(
    "unknown",
    [[[0, 1], [1, 1]], [[1, 0], [1, 0]], [[0, 0], [0, 1]]],
    ids=["first known", "column known", "last drawn"],
)
def test_completions_follow_the_conditionals(unknown):
    """Each unknown code from p(k | all before it), written out from the law of all maps."""
    prior, known = make_prior(), torch.tensor([[2, 1], [0, 2]])
    mask, maps = torch.tensor(unknown), all_maps(3, 2, 2)
    codes = prior.generate(10_000, rng(), codes=known.expand(10_000, 2, 2), mask=mask)
    steps = prior.log_prob(maps).exp().flatten(1)  # (81, 4)
    fits = (maps.flatten(1) == known.flatten()) | (mask.flatten() == 1)
    expected = torch.where(mask.flatten() == 1, steps, 1.0).prod(dim=1) * fits.all(dim=1)
    assert expected.sum().item() == pytest.approx(1)
    assert chi_squared(codes, expected) < 4
    if unknown == [[0, 1], [1, 1]]:  # a known beginning: this is Bayes' rule
        prefix = law(prior) * (maps[:, 0, 0] == 2)
        assert torch.allclose(expected, prefix / prefix.sum())


def test_temperature():
    """Against the law with each conditional to the power 1 / temperature; towards 0 the likeliest code."""
    prior, maps = make_prior(), all_maps(3, 2, 2)
    for temperature in (0.5, 2.0):
        conditionals = (prior(maps).logits / temperature).softmax(dim=1)
        expected = conditionals.gather(1, maps[:, None]).flatten(1).prod(dim=1)
        codes = prior.generate(10_000, rng(), temperature)
        assert chi_squared(codes, expected) < 4
        assert chi_squared(codes, law(prior)) > 20
    greedy = prior.generate(50, rng(), 1e-6)
    assert (greedy == prior(greedy).logits.argmax(dim=1)).all()


def test_generators():
    prior = make_prior(sample_size=SIZE)
    together = prior.generate(3, [rng(seed) for seed in (3, 4, 5)])
    single = [prior.generate(1, rng(seed)) for seed in (3, 4, 5)]
    assert torch.equal(together, torch.cat(single))
    assert len({str(one) for one in single}) == 3
    assert torch.equal(prior.generate(3, rng(1)), prior.generate(3, rng(1)))
    # noise belongs to a position: what is drawn before the first known code doesn't depend on it
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[2:] = False
    partly = prior.generate(3, rng(1), codes=torch.zeros(3, *SIZE, dtype=torch.long), mask=mask)
    assert torch.equal(partly[:, :2], prior.generate(3, rng(1))[:, :2])


def test_what_stands_at_unknown_positions_is_ignored_and_nothing_is_changed():
    prior, mask = make_prior(sample_size=SIZE), torch.ones(SIZE)
    codes = torch.full((2, *SIZE), -7)
    assert torch.equal(prior.generate(2, rng(), codes=codes, mask=mask), prior.generate(2, rng()))
    assert (codes == -7).all()
    known = random_codes(2, 3, 2)  # another size than the model's
    assert torch.equal(prior.generate(2, codes=known, mask=torch.tensor(False)), known)


def test_progress_bar_sees_the_rows():
    seen = []

    def bar(rows):
        for row in rows:
            seen.append(row)
            yield row

    make_prior(sample_size=SIZE).generate(1, progress_bar=bar)
    assert seen == [0, 1, 2, 3]


def test_round_trip(tmp_path):
    prior = make_prior(sample_size=SIZE, num_class_embeds=3, dropout=0.1).float()
    prior.save_pretrained(tmp_path)
    loaded = PixelCNNPrior.from_pretrained(tmp_path)
    assert not loaded.training and tuple(loaded.config.sample_size) == SIZE
    assert torch.equal(loaded.generate(2, rng()), prior.generate(2, rng()))


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 0}, "at least 1"),
        ({"num_layers": 0}, "at least 1"),
        ({"sample_size": (4, 0)}, "at least 1"),
        ({"sample_size": (4, 4, 4)}, "or a pair of them"),
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 1}, "at least 3"),
        ({"num_class_embeds": 1}, "null class"),
        ({"dropout": 1.0}, "at least 0.0 and below 1.0"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        PixelCNNPrior(**{"num_codes": 3, "width": 4, "num_layers": 2} | changes)


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        (torch.zeros(2, 4), None, r"\(B, h, w\)"),
        (torch.zeros(2, 2, 2), None, "int64"),
        (torch.zeros(2, 0, 2, dtype=torch.long), None, r"\(B, h, w\)"),
        (torch.full((2, 2, 2), 3), None, r"0\.\.2, got 3\.\.3"),
        (torch.full((2, 2, 2), -1), None, r"0\.\.2"),
        (torch.zeros(2, 2, 2, dtype=torch.long), torch.tensor([0]), "2 integers"),
        (torch.zeros(2, 2, 2, dtype=torch.long), torch.tensor([0.0, 1.0]), "2 integers"),
        (torch.zeros(2, 2, 2, dtype=torch.long), torch.tensor([0, 4]), r"0\.\.3"),
    ],
)
def test_bad_codes_and_labels(codes, labels, message):
    with pytest.raises(ValueError, match=message):
        make_prior(num_class_embeds=4).log_prob(codes, labels)


def test_labels_without_classes():
    with pytest.raises(ValueError, match="leave out `class_labels`"):
        make_prior()(random_codes(2, 2, 2), torch.tensor([0, 1]))


CODES = random_codes(2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"generator": [rng()]}, "1 generators for a batch of 2"),
        ({"codes": CODES}, "both or none"),
        ({"mask": torch.ones(2, 2)}, "both or none"),
        ({"codes": CODES[:1], "mask": torch.ones(2, 2)}, "1 maps"),
        ({"codes": CODES, "mask": torch.ones(3, 2)}, "doesn't fit"),
        ({"codes": CODES, "mask": torch.ones(5, 2, 2, 2)}, "doesn't fit"),
        ({"codes": CODES, "mask": torch.full((2, 2), 0.5)}, "binary"),
        ({"codes": CODES + 3, "mask": torch.zeros(2, 2)}, r"0\.\.2"),
        ({"codes": CODES.float(), "mask": torch.zeros(2, 2)}, "int64"),
        ({"codes": CODES[0], "mask": torch.zeros(2, 2)}, r"\(B, h, w\)"),
    ],
)
def test_bad_arguments_of_generate(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_prior().generate(**{"batch_size": 2} | arguments)
