"""The files of an adapter on disk, and how they name what they hold."""

from __future__ import annotations

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # a PEFT directory
PIPELINE_FILE = "pytorch_lora_weights.safetensors"  # where `load_lora_weights` looks by itself
PEFT_PREFIX = "base_model.model."  # of every site's name
