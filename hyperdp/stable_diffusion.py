"""The Stable-Diffusion class: a text-conditional UNet over the latents of an autoencoder."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from hyperdp.denoiser import Denoiser
from hyperdp.errors import UsageError
from hyperdp.latents import Latents

SETTINGS = "prompt.json"
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What adapters are trained and sampled with, where nothing else is said.

    Attributes:
        text: public; the same for every record.
        guidance_scale: classifier-free guidance of sampling; without a text there is none.
    """

    text: str = ""
    guidance_scale: float = 7.5


class StableDiffusion(Denoiser):
    """`UNet2DConditionModel`, `CLIPTextModel` and `AutoencoderKL` of a `StableDiffusionPipeline`.

    Rombach et al. 2022, arXiv 2112.10752. Sampling is the stock pipeline's own call.

    Args:
        pipeline: without a safety checker.
        prompt: see `Prompt`.
    """

    name = "stable-diffusion"
    lora_part: ClassVar[str] = "unet"

    def __init__(self, pipeline: Any, prompt: Prompt | None = None) -> None:
        config = pipeline.unet.config
        space = Latents(pipeline.vae, int(config.in_channels), int(config.sample_size))
        super().__init__(pipeline.unet.eval(), pipeline.scheduler, space)
        self.text_encoder = pipeline.text_encoder.eval()
        self.tokenizer = pipeline.tokenizer
        self.prompt = prompt or Prompt()
        self._codes: dict[tuple[str, torch.device], Tensor] = {}

    @classmethod
    def create(cls, **config: Any) -> StableDiffusion:
        """Always refused: text encoder and autoencoder come with a pipeline.

        Raises:
            UsageError: in any case.
        """
        raise UsageError(
            expected="a recipe that starts from a pipeline on disk",
            found=f"a fresh {cls.name} base",
            todo='Set start = "FOLDER" to the folder of a StableDiffusionPipeline.',
        )

    @classmethod
    def load(cls, folder: Path) -> StableDiffusion:
        """Loads the pipeline in `folder`, weights as float32, and its `prompt.json` if any.

        Raises:
            UsageError: the folder is no such pipeline.
        """
        try:
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                folder,
                torch_dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        except (ImportError, OSError, ValueError, AttributeError) as error:
            raise UsageError(
                expected=f"a StableDiffusionPipeline with safetensors weights in {folder}",
                found=f"{type(error).__name__}: {error}"[:300],
                todo="Save one there with `save_pretrained`.",
            ) from error
        seen, drawn = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
        if seen != drawn:
            raise UsageError(
                expected=f"a UNet that sees the {drawn} channels of its autoencoder's latents",
                found=f"one that sees {seen}, as those that paint into images do",
                todo="Take a pipeline that makes images from texts alone.",
            )
        return cls(pipeline, _read_prompt(folder / SETTINGS))

    def to(self, device: torch.device) -> None:
        """Moves UNet, autoencoder and text encoder."""
        super().to(device)
        self.text_encoder.to(device)

    def save(self, folder: Path) -> None:
        """Writes a pipeline that diffusers loads on its own, and `prompt.json` beside it."""
        self.pipeline().save_pretrained(folder, safe_serialization=True)
        (folder / SETTINGS).write_text(json.dumps(asdict(self.prompt)) + "\n")

    def pipeline(self, model: nn.Module | None = None) -> Any:
        """The stock pipeline around these networks.

        Args:
            model: the UNet with an adapter in it; the base's own when None.
        """
        pipeline = diffusers.StableDiffusionPipeline(
            vae=self.latents.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.model,
            scheduler=copy.deepcopy(self.scheduler),  # it counts its steps
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        if model is not None:
            pipeline.unet = model
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """What the UNet is given for each prompt: float32 [B, tokens, d]."""
        device = self.text_encoder.device
        for text in set(prompts):
            if (text, device) not in self._codes:
                tokens = self.tokenizer(
                    [text],
                    padding="max_length",
                    max_length=self.tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                )
                self._codes[text, device] = self.text_encoder(tokens.input_ids.to(device))[0]
        return torch.cat([self._codes[text, device] for text in prompts])

    def predict(
        self, network: nn.Module, noisy: Tensor, t: Tensor, prompts: list[str] | None = None
    ) -> Tensor:
        """The UNet's answer, float32 [B, c, h, w], to one prompt a record or to the base's own."""
        given = [self.prompt.text] * len(noisy) if prompts is None else prompts
        text = self.encode_prompts(given)
        answer: Tensor = network(noisy, t, encoder_hidden_states=text).sample
        return answer

    def prompted_loss(self, images: Tensor, prompts: list[str], rng: torch.Generator) -> Tensor:
        """The loss of records with a prompt each.

        Args:
            images: float32 [B, C, H, W] in [-1, 1].
            prompts: B of them.
            rng: CPU generator of times, noise and latents.

        Returns:
            float32 [B].
        """
        return self._drawn_loss(images, rng, prompts=prompts)

    def _draw(self, network: nn.Module, x: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        text = self.prompt.text
        images: Tensor = self.pipeline(network)(
            prompt=[text] * len(x),
            latents=x,
            num_inference_steps=steps,
            guidance_scale=self.prompt.guidance_scale if text else 1.0,
            generator=rng,
            output_type="pt",
        ).images
        return images * 2 - 1

    def sites(self) -> list[str]:
        """See `attention_sites`."""
        return attention_sites(self.model)


def _read_prompt(path: Path) -> Prompt:
    if not path.is_file():
        return Prompt()
    try:
        return Prompt(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UsageError(
            expected=f"text and guidance_scale in {path}",
            found=f"{type(error).__name__}: {error}"[:200],
            todo="Mend the file, or remove it.",
        ) from error


def attention_sites(unet: nn.Module) -> list[str]:
    """Every projection of every self- and cross-attention, in the order of the model."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(ATTENTION)
    ]
