"""The rows of benchmarks/peers: how they learn and draw, against closed forms and networks that know the data."""

import pytest
import torch

from benchmarks.peers import rows, training
from benchmarks.peers.data import Split
from benchmarks.peers.row import LossOf, Phase, Row, guided
from benchmarks.peers.training import choose_learning_rate, train_row
from diffusion_bridge_vq import DiffusionBridgeVQPipeline

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({3e-4: 0.4956, 1e-3: 0.4851, 3e-3: 0.4847}, 1e-3),  # as found on CIFAR-10, where 3e-3 diverged later
        ({3e-4: 0.2777, 1e-3: 0.2481, 3e-3: 0.2405}, 3e-3),
        ({3e-4: 0.9, 1e-3: 0.5, 3e-3: float("inf")}, 1e-3),
        (dict.fromkeys((3e-4, 1e-3, 3e-3), float("inf")), 3e-4),
    ],
)
def test_the_lowest_rate_that_is_as_good_as_the_best(losses, rate):
    assert choose_learning_rate(losses) == rate


def test_nothing_but_the_tokenizer_comes_from_the_checkpoint(data):
    """`init_from` once gave the rows of this package the shipped U-Net to start from."""
    torch.manual_seed(7)
    shipped = DiffusionBridgeVQPipeline.from_pretrained(data.setting.checkpoint)
    for name in ("bridge", "system"):
        row = rows.row_class(name)(data)
        fresh = row.networks()["unet"]
        assert not torch.equal(fresh.conv_in.weight, shipped.unet.conv_in.weight)
        assert fresh.class_embedding.weight.std() > 0.5  # diffusers' own start
    encoders = [vqvae.encoder.conv_in.weight for vqvae in (row.networks()["vqvae"], shipped.vqvae)]
    assert not torch.equal(*encoders)


class Mean(Row):
    """Learns the mean of the labels: the least squares are known."""

    title = "mean"

    def __init__(self, data, learning_rate=None):
        super().__init__(data, learning_rate)
        self.value = torch.nn.Linear(1, 1, bias=False)

    def phases(self):
        return [Phase(LossOf(self.value, self.loss), self._tensors, 0.3)]

    def _tensors(self, split: Split):
        return {"labels": split.labels.float()}

    def loss(self, value, labels):
        return (value(torch.ones(1, 1)) - labels).square().mean()

    def networks(self):
        return torch.nn.ModuleDict({"value": self.value})

    def draw(self, labels, **options):
        raise AssertionError


def test_the_loop_finds_the_least_squares(data):
    torch.manual_seed(0)
    row = Mean(data)
    row.preset = row.preset | {"batch_size": 1500, "ema_decay": 0.9}
    trained = train_row(row, 60, max_steps=200)
    assert row.value.weight.item() == pytest.approx(data.train.labels.float().mean().item(), abs=0.02)
    test = data.test.labels.float()
    expected = (test - row.value.weight.item()).square().mean().item()
    assert trained.validation == [pytest.approx(expected, rel=1e-5)] and trained.steps == [200]


def test_guidance_is_the_formula():
    def predict(sample, labels):
        return sample * labels.float()[:, None]

    sample, labels = torch.ones(2, 3), torch.tensor([1, 2])
    expected = 9 + 2.5 * (labels.float()[:, None] - 9) * sample
    assert torch.equal(guided(predict, sample, labels, 9, 2.5), expected)
    assert torch.equal(guided(predict, sample, labels, 9, 1.0), predict(sample, labels))


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_a_network_that_knows_the_data_draws_them(data, name, monkeypatch):
    """All images are one point x: the velocity and the noise are known, so the samplers must end in x."""
    row = rows.row_class(name)(data)
    x = torch.randn(1, 3, 4, 4)
    drawn = {}
    monkeypatch.setattr(data, "decode_latents", lambda latents: drawn.setdefault("latents", latents))

    class Knows(torch.nn.Module):
        config = row.unet.config

        def forward(self, noisy, t, class_labels=None):
            t = torch.as_tensor(t).reshape(-1, 1, 1, 1)
            if name == "flow":
                velocity = (noisy - x) / (t / 1000)
                return type("Output", (), {"sample": velocity})
            alpha = row.scheduler.alphas_cumprod[t.long()]
            return type("Output", (), {"sample": (noisy - alpha.sqrt() * x) / (1 - alpha).sqrt()})

    network = Knows()
    assert row.loss(network, x.expand(64, -1, -1, -1), torch.zeros(64).long()).item() < 1e-6
    row.unet = network
    row.draw(torch.tensor([1, 2]), steps=10, guidance_scale=2.0)
    assert torch.allclose(drawn["latents"], x.expand(2, -1, -1, -1), atol=2e-2)


def test_the_time_of_fitting_belongs_to_the_row_and_trials_of_rates_do_without(data, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(training, "_train", lambda *arguments: (2, lambda: clock.__setitem__(0, clock[0] + 5) or 0.5))
    cls = rows.row_class("fitted")
    monkeypatch.setattr(cls, "finish", lambda row: clock.__setitem__(0, clock[0] + 100))
    assert train_row(cls(data), 60.0).seconds == [100.0]  # not the 5 s of the loss on test images
    before = clock[0]
    assert training.try_learning_rates(lambda rate: cls(data, rate), 1.0, 6.0, seed=0) == {
        1 / 3: 0.5,
        1.0: 0.5,
        3.0: 0.5,
    }
    assert clock[0] == before + 3 * 5


def test_fitted_steps_are_the_rows_own_and_are_kept_with_its_weights(data):
    """The network is called at the fitted timesteps; a fresh row with the same weights draws the same."""
    torch.manual_seed(0)
    row = rows.row_class("fitted")(data)
    trained = train_row(row, 60.0, max_steps=2)
    assert len(trained.steps) == 1
    fitted = row.points.known()
    assert {number: len(points) for number, points in fitted.items()} == {3: 3, 2: 2}
    assert all(points == sorted(points, reverse=True) for points in fitted.values())
    again = rows.row_class("fitted")(data)
    again.networks().load_state_dict(row.networks().state_dict())
    for each in (row, again):
        each.learner.eval()
        called = []
        hook = each.networks()["unet"].register_forward_pre_hook(
            lambda _, arguments, keywords, called=called: called.append(int(arguments[1].flatten()[0])),
            with_kwargs=True,
        )
        torch.manual_seed(1)
        each.drawn = each.draw(torch.tensor([1, 2]), steps=3)
        hook.remove()
        assert called == fitted[3]
    assert torch.equal(row.drawn, again.drawn)


def test_the_gpt_draws_its_own_law(data):
    """Codes of `generate` with the cache, one position at a time, against the law that one forward pass gives."""
    torch.manual_seed(0)
    row = rows.row_class("gpt")(data)
    row.model.eval()
    with torch.no_grad():  # a far from uniform law
        row.model.transformer.wte.weight.mul_(40)
    drawn = {}
    row.decode = lambda codes: drawn.setdefault("codes", codes)
    labels = torch.full((2000,), 3)
    row.draw(labels)
    start = row.class_tokens(labels[:1])
    logits = row.model(start).logits[0, -1, : row.num_codes]
    frequencies = torch.bincount(drawn["codes"][:, 0], minlength=row.num_codes) / 2000
    assert (frequencies - logits.softmax(0)).abs().max() < 0.045
    assert drawn["codes"].shape == (2000, 16) and int(drawn["codes"].max()) < row.num_codes
    first = int(drawn["codes"][0, 0])
    same = drawn["codes"][drawn["codes"][:, 0] == first][:, 1]
    second = row.model(torch.tensor([[int(start), first]])).logits[0, -1, : row.num_codes].softmax(0)
    assert (torch.bincount(same, minlength=row.num_codes) / len(same) - second).abs().max() < 4 / len(same) ** 0.5


def test_a_masked_transformer_that_knows_the_codes_draws_them(data):
    """Guided logits leave one code at each position: that of the class, with the null class's logits taken off."""
    row = rows.row_class("masked")(data)
    drawn, codes = {}, torch.arange(row.length) % row.num_codes
    row.decode = lambda codes: drawn.setdefault("codes", codes)

    def logits(model, tokens, class_tokens):
        """20 for the code of the class, and 30 for the code 0 whatever the class is."""
        wanted = (codes + class_tokens) % row.num_codes
        known = class_tokens[:, :, None] != row.num_codes + row.null_class
        own = 20.0 * torch.nn.functional.one_hot(wanted, row.num_codes) * known
        own[..., 0] += 30.0
        return own

    row._logits = logits
    labels = torch.tensor([1, 4])
    row.draw(labels, guidance_scale=3.0, temperature=2.0, steps=4)
    assert torch.equal(drawn["codes"], (codes + row.class_tokens(labels)) % row.num_codes)
