import subprocess
import sys

import pytest

from hyperdp import keys
from hyperdp.errors import UsageError
from tests.ledgers import reserve
from tests.private_world import own_keys  # noqa: F401


def test_fingerprint_is_keyed_and_shows_nothing(ledger, tmp_path, monkeypatch):
    reserve(ledger, dataset="patients of ward 7")
    assert b"ward" not in ledger.path.read_bytes()
    mine = keys.dataset_fingerprint("x")
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "other"))
    assert keys.dataset_fingerprint("x") != mine


def test_keys_are_the_owners_alone_and_made_once():
    first = keys.sign(b"x")
    for name in ("signing.key", "ledger.key"):
        keys.seal(b"x")
        assert (keys.config_dir() / name).stat().st_mode & 0o777 == 0o600
    assert keys.sign(b"x") == first


def test_a_key_that_others_can_read_is_refused():
    keys.seal(b"x")
    (keys.config_dir() / "ledger.key").chmod(0o644)
    with pytest.raises(UsageError, match="owner alone"):
        keys.seal(b"x")


def test_a_cut_key_is_refused():
    keys.seal(b"x")
    path = keys.config_dir() / "ledger.key"
    path.write_bytes(path.read_bytes()[:31])
    with pytest.raises(UsageError, match="31 bytes"):
        keys.seal(b"x")


def test_config_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("HYPERDP_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert keys.config_dir() == tmp_path / "xdg" / "hyperdp"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys.config_dir() == tmp_path / ".config" / "hyperdp"


def test_a_config_folder_that_cannot_be_made_is_a_usage_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPERDP_CONFIG_DIR", str(tmp_path / "file" / "config"))
    with pytest.raises(UsageError, match="HYPERDP_CONFIG_DIR"):
        keys.config_dir()


def test_processes_that_race_for_the_first_key_agree(tmp_path):
    code = "from hyperdp import keys; print(keys.dataset_fingerprint('x'))"
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({racer.communicate()[0] for racer in racers}) == 1
    left = {p.name for p in keys.config_dir().iterdir()}
    assert left == {"ledger.key"}
