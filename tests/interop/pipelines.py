"""A Stable Diffusion with random weights, made on the spot, its parts in small."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

__all__ = ["DDIMInverseScheduler", "DDPMScheduler", "PNDMScheduler", "stable_diffusion"]
WORDS = ("a", "photo", "of", "dog", "octopus", "on", "grass")
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 8
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def tokenizer():
    """Letters, and the words above by merges of their letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces, merges = [*letters, *(c + "</w>" for c in letters)], []
    for word in WORDS:
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for piece in rest:
            if (left, piece) not in merges:
                merges.append((left, piece))
            left += piece
            if left not in pieces:
                pieces.append(left)
    vocabulary = {piece: i for i, piece in enumerate([*pieces, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def text_encoder(vocabulary):
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=8,
        bos_token_id=vocabulary[START], eos_token_id=vocabulary[END],
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def stable_diffusion():
    torch.manual_seed(0)
    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        latent_channels=4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(words.get_vocab()), tokenizer=words, unet=unet,
        scheduler=DDIMScheduler(1000, **NOISE, **STEPS), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
