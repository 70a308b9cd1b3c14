"""Whether a folder lies on a disk of this host: SQLite's locks hold nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hyperdp.errors import UsageError

# SQLite's write-ahead log needs memory that all its processes share: one kernel, one host.
_NETWORK_FILESYSTEMS = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.juicefs"),
    *("fuse.davfs", "fuse.ceph", "9p", "virtiofs", "vboxsf", "ocfs2", "gfs2", "orangefs"),
)


def refuse_network(folder: Path) -> None:
    """Refuse a folder on a filesystem that is known to be shared between hosts.

    Raises:
        UsageError: it is on one.
    """
    if (kind := filesystem(folder.resolve())) in _NETWORK_FILESYSTEMS:
        raise UsageError(
            expected="a ledger on a disk of this host, where its locks hold",
            found=f"{folder} on a network filesystem ({kind})",
            todo="Keep the ledger on one host and make all releases of a dataset there.",
        )


def filesystem(folder: Path) -> str:
    """The type of the filesystem that holds a folder, as the kernel names it; "" if unknown."""
    mounts = Path("/proc/mounts")
    best, kind = -1, ""
    for line in mounts.read_bytes().splitlines() if mounts.exists() else []:
        _, escaped, this, *_ = line.split(b" ")
        octal = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), escaped)
        point = os.fsdecode(octal)
        if folder.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), this.decode("ascii", "replace")
    return kind
