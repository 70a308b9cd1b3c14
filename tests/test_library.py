"""The library of public tasks: made in parts, looked up by z, averaged where LoRA has a meaning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdp.encoder import clip
from hyperdp.errors import DataError, UsageError
from hyperdp.eval.nearest import NearestConfig, averaged, nearest_weights
from hyperdp.library import Library
from hyperdp.lora import adapters, describe_sites
from hyperdp.pretrain.corpus_sample import open_sample
from hyperdp.pretrain.library import LibraryConfig, make_library
from hyperdp.pretrain.world import GlyphWorld
from hyperdp.private.finetune import fresh_adapter
from tests.worlds import tiny_bundle

SETTINGS = {"steps": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def adapter(bundle, seed: int):
    """A LoRA that does something, told from others by its seed."""
    rng = torch.Generator().manual_seed(seed)
    fresh = fresh_adapter(describe_sites(bundle.base.model, bundle.config.sites), 2, rng)
    return {
        name: (a.detach(), torch.randn(b.shape, generator=rng) * 0.1)
        for name, (a, b) in fresh.items()
    }


def test_a_killed_library_goes_on_and_comes_out_the_same(bundle, tmp_path: Path):
    config, corpus = LibraryConfig(tasks=3, records=20), GlyphWorld(open_sample())
    seen: list[int] = []

    def train(images: torch.Tensor, seed: int):
        assert images.shape == (20, 1, 28, 28)
        seen.append(seed)
        if dying and len(seen) == 2:
            raise KeyboardInterrupt
        return adapter(bundle, seed)

    def make(folder: Path, **change: object) -> Library:
        return make_library(
            bundle, corpus, replace(config, **change), folder, train=train, settings=SETTINGS
        )

    dying = True
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "one")
    dying = False
    resumed = make(tmp_path / "one")
    assert len(seen) == 4  # the killed task alone was made again
    assert resumed.indices() == [0, 1, 2]
    assert torch.equal(resumed.means(), make(tmp_path / "two").means())
    assert len({tuple(mean.tolist()) for mean in resumed.means()}) == 3
    assert make(tmp_path / "one", tasks=4).indices() == [0, 1, 2, 3]
    for change in ({"records": 10}, {"seed": 1}):
        with pytest.raises(UsageError, match="other settings"):
            make(tmp_path / "one", **change)


def test_a_mean_is_that_of_clipped_embeddings(bundle, tmp_path: Path):
    drawn: list[torch.Tensor] = []

    def train(images: torch.Tensor, seed: int):
        drawn.append(images)
        return adapter(bundle, seed)

    config = LibraryConfig(tasks=1, records=12)
    made = make_library(
        bundle, GlyphWorld(open_sample()), config, tmp_path / "l", train=train, settings=SETTINGS
    )
    with torch.no_grad():
        expected = clip(bundle.encoder(drawn[0]), bundle.config.clip_norm).mean(0)
    mean, weights = made.task(0)
    assert torch.allclose(mean, expected, atol=1e-6)
    for name, (a, b) in adapter(bundle, 0).items():
        assert torch.equal(weights[name][0], a)
        assert torch.equal(weights[name][1], b)


def test_the_average_of_adapters_is_that_of_their_delta_w(bundle):
    """Not of their factors: a change of basis between A and B must change nothing."""
    many = [adapter(bundle, seed) for seed in range(3)]
    turn = torch.tensor([[2.0, 1.0], [0.0, -0.5]])
    turned = {
        name: (torch.einsum("rs,gs...->gr...", turn, a), b @ torch.linalg.inv(turn))
        for name, (a, b) in many[0].items()
    }
    for parts in (many, [turned, *many[1:]]):
        for name, (a, b) in averaged(parts).items():
            product = b[0] @ a[0].flatten(1)
            mean = sum(w[name][1][0] @ w[name][0][0].flatten(1) for w in many) / 3
            assert torch.allclose(product, mean, atol=1e-5)
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([300.0, 900.0])
    alone = averaged(many[:1])
    with torch.no_grad():
        with adapters(bundle.base.model, alone):
            one = bundle.base.model(x, t).sample
        with adapters(bundle.base.model, many[0]):
            assert torch.allclose(one, bundle.base.model(x, t).sample, atol=1e-6)


def test_the_nearest_mean_is_the_one_a_search_by_hand_finds(bundle, tmp_path: Path):
    library = Library.make(tmp_path / "l", bundle, SETTINGS)
    means = torch.randn(7, 8, generator=torch.Generator().manual_seed(5))
    numbers = [0, 1, 3, 4, 6, 8, 9]  # a library may have gaps
    for number, mean in zip(numbers, means, strict=True):
        library.add(number, mean, adapter(bundle, number))
    z = torch.randn(8, generator=torch.Generator().manual_seed(6))
    order = (means - z).square().sum(1).argsort().tolist()
    for count in (1, 3):
        found = nearest_weights(library, z, NearestConfig(neighbours=count))
        expected = averaged([adapter(bundle, numbers[i]) for i in order[:count]])
        for name, (a, b) in expected.items():
            assert torch.equal(found[name][0], a)
            assert torch.equal(found[name][1], b)
    with pytest.raises(UsageError, match="at least 8 tasks"):
        nearest_weights(library, z, NearestConfig(neighbours=8))
    with pytest.raises(UsageError, match="neighbours >= 1"):
        NearestConfig(neighbours=0)


def test_a_library_of_another_bundle_or_a_damaged_one_is_refused(bundle, tmp_path: Path):
    with pytest.raises(UsageError, match="pretrain library"):
        Library.load(tmp_path / "none", bundle)
    library = Library.make(tmp_path / "l", bundle, SETTINGS)
    library.add(0, torch.zeros(8), adapter(bundle, 0))
    assert Library.load(tmp_path / "l", bundle) == library
    other = replace(bundle, hash="00" * 32)
    with pytest.raises(UsageError, match="another φ"):
        Library.load(tmp_path / "l", other)
    file = tmp_path / "l" / "task-00000.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="Remove the file"):
        library.task(0)
    (tmp_path / "l" / "library.json").write_text("[]")
    with pytest.raises(DataError, match="anew"):
        Library.load(tmp_path / "l", bundle)
