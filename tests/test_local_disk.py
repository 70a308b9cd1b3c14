import pytest

from hyperdp import local_disk
from hyperdp.errors import UsageError
from tests.ledgers import reserve
from tests.private_world import own_keys  # noqa: F401


@pytest.mark.parametrize("kind", ["nfs4", "9p", "virtiofs", "fuse.s3fs", "fuse.ceph"])
def test_a_network_filesystem_is_refused(ledger, monkeypatch, kind):
    monkeypatch.setattr(local_disk, "filesystem", lambda folder: kind)
    with pytest.raises(UsageError, match="network filesystem"):
        reserve(ledger)


def test_the_filesystem_of_a_folder_is_that_of_its_nearest_mount(tmp_path, monkeypatch):
    mounts = "a / ext4 rw 0 0\nb /mnt/with\\040blank nfs4 rw 0 0\nc /mnt tmpfs rw 0 0\n"
    mounts += "d /mnt/\u00e9t\u00e9\\134n 9p rw 0 0\n"
    raw = mounts.encode() + b"e /mnt/\xff virtiofs rw 0 0\n"
    monkeypatch.setattr(local_disk.Path, "read_bytes", lambda self: raw)
    assert local_disk.filesystem(local_disk.Path("/mnt/\u00e9t\u00e9\\n/x")) == "9p"
    assert local_disk.filesystem(local_disk.Path("/mnt/\udcff")) == "virtiofs"
    assert local_disk.filesystem(local_disk.Path("/mnt/with blank/x")) == "nfs4"
    assert local_disk.filesystem(local_disk.Path("/mnt/x")) == "tmpfs"
    assert local_disk.filesystem(local_disk.Path("/home")) == "ext4"
