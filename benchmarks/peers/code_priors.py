"""Rows of table A on the tokenizer's codes: a GPT with its cache, and a masked transformer (MaskGIT)."""

import math

import torch
import torch.nn.functional as F
from diffusers import AmusedScheduler
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from .data import Data, Split
from .row import LossOf, Phase, TokenizerRow


class _CodeRow(TokenizerRow):
    """A transformer over a token of the class and the codes in raster order."""

    packages = ("transformers",)
    model: nn.Module

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate or 1e-3)
        self.num_codes, self.length = data.num_codes, data.side**2

    def phases(self) -> list[Phase]:
        return [Phase(LossOf(self.model, self.loss), self._tensors, self.learning_rate, keep_best=True)]

    def _tensors(self, split: Split) -> dict[str, torch.Tensor]:
        return {"codes": self.data.codes(split).flatten(1), "labels": split.labels}

    def loss(self, model: nn.Module, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def class_tokens(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, 1), after the codes in the vocabulary."""
        return self.num_codes + labels[:, None]

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"transformer": self.model})

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.data.decode_codes(codes.reshape(-1, self.data.side, self.data.side))


class GPT(_CodeRow):
    """What a VQ-GAN has; the cache of keys and values is that of `generate`."""

    title = "GPT over codes, with cache"
    search = {"guidance_scale": (1.0, 1.5, 2.5)}

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        size = self.setting.transformer
        config = GPT2Config(
            vocab_size=self.num_codes + data.num_classes + 1,
            n_positions=self.length + 1,
            n_embd=size["width"],
            n_layer=size["layers"],
            n_head=size["heads"],
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(config)

    def loss(self, model: nn.Module, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.class_tokens(self.labels_for(model, labels)), codes], dim=1)
        return model(input_ids=tokens, labels=tokens).loss  # shifts by itself; the class isn't predicted

    @torch.no_grad()
    def draw(self, labels: torch.Tensor, guidance_scale: float = 1.0) -> torch.Tensor:
        start = self.class_tokens(labels)
        null = self.class_tokens(torch.full_like(labels, self.null_class))
        guidance = {} if guidance_scale == 1 else {"guidance_scale": guidance_scale, "negative_prompt_ids": null}
        tokens = self.model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,  # its default of 50 is meant for text
            max_new_tokens=self.length,
            suppress_tokens=list(range(self.num_codes, self.model.config.vocab_size)),
            pad_token_id=0,
            use_cache=True,
            **guidance,
        )
        return self.decode(tokens[:, 1:])


class MaskedTransformer(_CodeRow):
    """MaskGIT (Chang et al. 2022): a BERT; masking and unmasking by diffusers' scheduler of aMUSEd."""

    title = "masked transformer over codes"
    packages = ("transformers", "diffusers")
    search = {"guidance_scale": (1.0, 1.5, 2.5), "temperature": (2.0, 1.0, 4.5), "steps": (12, 8, 16)}

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        size = self.setting.transformer
        self.mask = self.num_codes + data.num_classes + 1
        config = BertConfig(
            vocab_size=self.mask + 1,
            hidden_size=size["width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            intermediate_size=4 * size["width"],
            max_position_embeddings=self.length + 1,
        )
        self.model = BertForMaskedLM(config)

    def loss(self, model: nn.Module, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        share = torch.cos(torch.rand(len(codes), 1) * math.pi / 2)  # masked: the cosine schedule of the sampler
        order = torch.rand(codes.shape).argsort(dim=1)
        masked = order < (share * self.length).ceil().clamp(min=1)
        known = torch.where(masked, self.mask, codes)
        logits = self._logits(model, known, self.class_tokens(self.labels_for(model, labels)))
        return F.cross_entropy(logits[masked], codes[masked], label_smoothing=0.1 if model.training else 0.0)

    def _logits(self, model: nn.Module, tokens: torch.Tensor, class_tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, K), of codes only."""
        return model(input_ids=torch.cat([class_tokens, tokens], dim=1)).logits[:, 1:, : self.num_codes]

    @torch.no_grad()
    def draw(
        self, labels: torch.Tensor, guidance_scale: float = 1.0, temperature: float = 2.0, steps: int = 12
    ) -> torch.Tensor:
        scheduler = AmusedScheduler(mask_token_id=self.mask)
        scheduler.set_timesteps(min(steps, self.length), temperature=(temperature, 0))
        tokens = torch.full((len(labels), self.length), self.mask)
        own = self.class_tokens(labels)
        null = self.class_tokens(torch.full_like(labels, self.null_class))
        for t in scheduler.timesteps:
            if guidance_scale == 1:
                logits = self._logits(self.model, tokens, own)
            else:
                both = self._logits(self.model, torch.cat([tokens, tokens]), torch.cat([own, null]))
                with_class, without = both.chunk(2)
                logits = without + guidance_scale * (with_class - without)
            tokens = scheduler.step(logits, t, tokens).prev_sample
        return self.decode(tokens)
