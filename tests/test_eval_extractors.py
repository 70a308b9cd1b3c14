"""Extractors by name: real networks of toy size, saved and loaded from local files."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from hyperdp.errors import UsageError
from hyperdp.eval.extractors import EXTRACTORS, load_extractor
from hyperdp.eval.features import EfficientNetLite0, extract


def pictures(count, channels=1):
    generator = torch.Generator().manual_seed(4)
    return torch.rand(count, channels, 20, 20, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, intermediate_size=16, image_size=24, patch_size=8)
    text = CLIPTextConfig(**size, intermediate_size=16, vocab_size=9, max_position_embeddings=4)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=6
    )
    CLIPModel(config).save_pretrained(root / "clip-tiny")
    dino = Dinov2Config(**size, image_size=28, patch_size=14)
    Dinov2Model(dino).save_pretrained(root / "dino-tiny")
    for name in ("clip-tiny", "dino-tiny"):
        (root / name / "preprocessor_config.json").write_text(
            '{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}'
        )
    return root


def preprocessed(images, side):
    """By hand, from the definition: grey to RGB, [0, 1], bicubic, then mean and std."""
    big = torch.nn.functional.interpolate(
        images, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    unit = ((big + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    return (unit - mean[:, None, None]) / std[:, None, None]


def test_clip_is_the_library_s_own_embedding(folders):
    extractor = load_extractor("clip", folders / "clip-tiny")
    found = extract(extractor, pictures(5))
    model = CLIPModel.from_pretrained(folders / "clip-tiny").eval()
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=preprocessed(pictures(5), 24)).pooler_output
        expected = model.visual_projection(pooled)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)
    assert found.extractor == "CLIP clip-tiny"


def test_dino_is_the_class_token(folders):
    extractor = load_extractor("dino", folders / "dino-tiny")
    found = extract(extractor, pictures(40, 3))
    model = Dinov2Model.from_pretrained(folders / "dino-tiny").eval()
    with torch.no_grad():
        tokens = model(pixel_values=preprocessed(pictures(40, 3), 28)).last_hidden_state
    torch.testing.assert_close(found.values, tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(extractor(pictures(40, 3)[39:]), found.values[39:])
    assert extractor(pictures(0)).shape == (0, 16)


def test_the_shipped_one_is_the_default():
    assert isinstance(load_extractor(), EfficientNetLite0)


@pytest.mark.parametrize(
    ("name", "weights", "match"),
    [
        ("vgg", None, "features out of"),
        ("clip", None, "--feature-weights"),
        ("clip", "missing", "nothing at"),
        ("clip", "dino-tiny", "type clip"),
        ("dino", "clip-tiny", "dinov2"),
        ("dino", "empty", "config.json"),
        ("efficientnet-lite0", "dino-tiny", "no weights"),
    ],
)
def test_what_cannot_be_loaded_is_told(folders, name, weights, match):
    (folders / "empty").mkdir(exist_ok=True)
    path = None if weights is None else folders / weights
    with pytest.raises(UsageError, match=match):
        load_extractor(name, path)


def test_pickled_weights_are_refused(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match="safetensors"):
        load_extractor("dino", tmp_path)


def test_weights_that_are_missing_are_not_made_up(folders, tmp_path):
    shutil.copytree(folders / "dino-tiny", tmp_path / "d")
    tensors = load_file(tmp_path / "d" / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, tmp_path / "d" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"layernorm\.weight"):
        load_extractor("dino", tmp_path / "d")


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is there"
)
def test_inception_says_which_package_it_needs(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match="pip install torch-fidelity"):
        load_extractor("inception", tmp_path / "w.pth")
    assert "pt_inception" in EXTRACTORS["inception"]
