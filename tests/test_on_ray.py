"""What surrounds Ray: where its files are, what it may tell, and which actors are believed.

A stand-in takes Ray's place, which is an extra; `test_private_scale` runs Ray itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hyperdp.errors import BundleError, UsageError
from hyperdp.mechanism import MechanismSpec
from hyperdp.private import on_ray
from hyperdp.private.aggregate import aggregate
from hyperdp.private.forms import Form
from hyperdp.private.on_ray import RaySum
from tests.private_world import DIM, TinyBundle, records

BUNDLE = TinyBundle()
SPEC = MechanismSpec(embedding_dim=DIM, num_classes=1, clip_norm=1.0)
FLAGS = ("enable_progress_bars", "enable_operator_progress_bars", "enable_auto_log_stats")


class StandIn(ModuleType):
    """As much of Ray as this room asks of it."""

    def __init__(self) -> None:
        super().__init__("ray")
        # -1 as an operator may set it: blocks in which something was raised are dropped.
        self.context = SimpleNamespace(**dict.fromkeys(FLAGS, True), max_errored_blocks=-1)
        self.data = ModuleType("ray.data")
        self.data.DataContext = SimpleNamespace(get_current=lambda: self.context)  # type: ignore[attr-defined]
        self.address = "127.0.0.1"
        self.util = SimpleNamespace(get_node_ip_address=lambda: self.address)
        self.started: list[dict[str, Any]] = []
        self.ended = 0

    def init(self, **options: Any) -> None:
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        self.started.append(options)
        Path(options["_temp_dir"], "log").write_text("n = 1237")

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setitem(sys.modules, "ray.data", stand_in.data)
    return stand_in


class Rows:
    """A dataset embedded by one actor, which tells of every batch, as Ray does."""

    def __init__(self, count: int) -> None:
        self.images = [record.image for record in records(count)]
        self.context = SimpleNamespace(**dict.fromkeys(FLAGS, True), max_errored_blocks=-1)
        self.seen: list[bool] = []
        self.dropped: list[int] = []

    def map_batches(self, kind: Any, *, fn_constructor_args: tuple[Any, ...], **_: Any) -> Rows:
        self.actor = kind(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.images), 64):
            part = self.images[start : start + 64]
            logging.getLogger("ray.data._internal").warning("%d records", len(self.images))
            self.seen += [getattr(self.context, name) for name in FLAGS]
            self.dropped.append(self.context.max_errored_blocks)
            yield {k: v[0] for k, v in self.actor({"image": np.stack(part)}).items()}


def added_up(rows: Rows, bundle: TinyBundle = BUNDLE) -> np.ndarray:
    total = RaySum(1)(rows, bundle=bundle, spec=SPEC, unit="record", classes=[])
    return total.to_vector()


def test_rays_files_are_in_memory_for_this_account_alone_and_go_with_it(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "MEMORY", tmp_path)
    on_ray.start_ray(2)
    [options] = ray.started
    folder = Path(options["_temp_dir"])
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert options["_system_config"] == {"automatic_object_spilling_enabled": False}
    assert options["_node_ip_address"] == "127.0.0.1"  # no port is open to the network
    on_ray.stop_ray()
    assert ray.ended == 1 and not folder.exists()
    on_ray.stop_ray()
    assert ray.ended == 1  # what others started is not ended


def test_ray_that_would_listen_to_the_network_is_ended(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "MEMORY", tmp_path)
    ray.address = "192.0.2.2"
    with pytest.raises(UsageError, match=r"alone; found it listening at 192\.0"):
        on_ray.start_ray(2)
    assert ray.ended == 1 and not list(tmp_path.iterdir())
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def test_without_memory_for_files_they_are_temporary_ones(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "MEMORY", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    on_ray.start_ray(2)
    assert Path(ray.started[0]["_temp_dir"]).parent == tmp_path
    on_ray.stop_ray()
    assert not list(tmp_path.iterdir())


def test_ray_tells_nobody_how_many_records_there_are(ray, caplog, capfd):
    rows = Rows(203)
    caplog.set_level(logging.DEBUG)
    found = added_up(rows)
    alone = aggregate(records(203), bundle=BUNDLE, spec=SPEC, unit="record", classes=[])
    assert np.array_equal(found, alone.to_vector())
    shown = capfd.readouterr()
    assert "203" not in caplog.text + shown.out + shown.err
    assert rows.seen and not any(rows.seen)
    assert rows.dropped and not any(rows.dropped), "one record would take its block with it"
    for context in (ray.context, rows.context):  # and what was set before is set again
        assert all(getattr(context, name) for name in FLAGS)
        assert context.max_errored_blocks == -1
    logging.getLogger("ray.data").warning("after it")
    assert "after it" in caplog.text


class DriftsInActors(nn.Module):
    """Its weights change once it has been tried: in the actor's batches of records alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > len(Form.of(BUNDLE.config).extremes()) + 4:
            self.seen += 1
        return x.flatten(1)[:, :DIM]


@pytest.mark.parametrize("count", [10, 203])
@pytest.mark.usefixtures("ray")
def test_weights_that_change_in_an_actor_are_found_out(count: int):
    bundle = TinyBundle(encoder=DriftsInActors())
    # Another process's copy: what the caller has stays as it is.
    with pytest.raises(BundleError, match="stay as they are"):
        added_up(Remote(count), bundle)


@pytest.mark.usefixtures("ray")
def test_an_encoder_that_mixes_records_in_an_actor_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Mixes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :DIM] + x.mean() * (os.environ.get("IN_ACTOR") == "1")

    monkeypatch.setenv("IN_ACTOR", "1")
    with pytest.raises(BundleError, match="whatever is beside them"):
        added_up(Rows(10), TinyBundle(encoder=Mixes()))


class Remote(Rows):
    """Whose actor has a copy of the encoder."""

    def map_batches(self, kind: Any, *, fn_constructor_args: tuple[Any, ...], **_: Any) -> Rows:
        encoder, *rest = fn_constructor_args
        copy = type(encoder)()
        copy.load_state_dict(encoder.state_dict())
        self.actor = kind(copy, *rest)
        return self
