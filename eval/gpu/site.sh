#!/usr/bin/env bash
# Packs what a GPU machine without a network lacks to run these scripts: the packages that hyperdp
# needs, in the versions that are installed here, but for torch and what the other machine has.
#
#     eval/gpu/site.sh OUT.tar.xz HAVE [PYTHON_VERSION]
#
# HAVE names the packages there, one a line (there: python -m pip list --format=freeze > HAVE). LIST=1
# says what would be packed, and downloads nothing. There, with a copy of this checkout:
#     mkdir site && tar xJf OUT.tar.xz -C site && PYTHONPATH=$PWD/site eval/gpu/evidence.sh
set -euo pipefail

out=${1:?OUT.tar.xz} have=${2:?HAVE} version=${3:-3.12}
python=${PYTHON:-python}
lacking=$("$python" - "$have" <<'CODE'
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

there = {plain(re.split("[= ]", line)[0]) for line in Path(sys.argv[1]).read_text().split("\n")}
wanted, found = [Requirement("hyperdp[pretrain,eval]")], {}
while wanted:
    need = wanted.pop()
    name = plain(need.name)
    if name in there | {"torch"} or (name, *need.extras) in found:
        continue
    try:
        of = distribution(need.name)
    except PackageNotFoundError:
        sys.exit(f"error: {need} is not installed here; install hyperdp[pretrain,eval] first")
    found[name, *need.extras] = of.version
    for line in of.requires or []:
        more = Requirement(line)
        marked = more.marker is None or any(
            more.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)
        )
        if marked:
            wanted.append(more)
lines = {f"{key[0]}=={version}" for key, version in found.items() if key[0] != "hyperdp"}
print("\n".join(sorted(lines)))
CODE
)
[ -z "${LIST:-}" ] || { echo "$lacking"; exit; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels" "$work/site"
if [ -n "$lacking" ]; then
  platforms=()
  for glibc in 2_34 2_31 2_28 2_27 2_24 2_17; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
  done
  printf '%s\n' "$lacking" > "$work/lacking.txt"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "$version" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    -d "$work/wheels" -r "$work/lacking.txt"
  for wheel in "$work"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/site"
  done
fi
# What hyperdp is called and which version it is; its code is that of the checkout.
"$python" - "$work/site" <<'CODE'
import sys
from importlib.metadata import distribution
from pathlib import Path

of = distribution("hyperdp")
folder = Path(sys.argv[1]) / f"hyperdp-{of.version}.dist-info"
folder.mkdir()
(folder / "METADATA").write_text(of.metadata.as_string(), encoding="utf-8")
CODE
find "$work/site" -name '*.so*' -exec strip --strip-unneeded {} + 2> /dev/null || true
tar c -C "$work/site" . | xz -T0 > "$out"
echo "$out: $(printf '%s' "$lacking" | grep -c . || true) packages"
