"""Tiny randomly initialised diffusers folders, of the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

from tests.worlds import TINY_UNET

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def vae() -> AutoencoderKL:
    """An autoencoder of 16×16 colour images with 8×8 latents of four channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def stable_diffusion_folder(folder: Path) -> Path:
    """A `StableDiffusionPipeline` for 16×16 images with 8×8 latents."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS)]
    names = ["<|startoftext|>", "<|endoftext|>", *words]
    files = folder / "words"
    files.mkdir(parents=True)
    (files / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(names)}))
    (files / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(files / "vocab.json"), str(files / "merges.txt"), model_max_length=12
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(names), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=12, bos_token_id=0, eos_token_id=1,
            pad_token_id=1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def dit_folder(folder: Path) -> Path:
    """A `DiTPipeline` that learns its variance, over 8×8 latents."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler()).save_pretrained(
        folder
    )
    return folder


def ddpm_folder(folder: Path) -> Path:
    """A `DDPMPipeline`, unconditional and in pixels."""
    torch.manual_seed(0)
    DDPMPipeline(unet=UNet2DModel(**TINY_UNET), scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder
