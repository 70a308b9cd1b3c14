"""Training in several processes, by accelerate's launcher or torch's.

    accelerate launch --multi_gpu --num_processes 8 -m hyperdp.pretrain hyper RECIPE --base BASE
    torchrun --nproc-per-node 2 -m hyperdp.pretrain hyper RECIPE --base BASE

Without a GPU, torchrun. It trains what `hyperdp pretrain` trains; started again, it goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hyperdp.errors import HyperdpError
from hyperdp.pretrain.command import run_base, run_hyper
from hyperdp.processes import joined_processes


def main(words: Sequence[str] | None = None) -> int:
    """Runs one recipe.

    Args:
        words: the arguments; those of the process when None.

    Returns:
        The exit status: 0, or that of the error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hyperdp.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=("base", "hyper"))
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    parser.add_argument("-o", "--out", type=Path, help="folder; runs/RECIPE by default")
    parser.add_argument("--base", type=Path, help="a local diffusers folder (hyper)")
    parser.add_argument("--freeze-base", action="store_true", help="leave it as it is (hyper)")
    parser.add_argument("--steps", type=int, help="train so many steps in all")
    given = parser.parse_args(words)
    command = shlex.join(["python", "-m", "hyperdp.pretrain", *(words or sys.argv[1:])])
    with joined_processes() as state:
        try:
            if given.kind == "base":
                made = run_base(given.recipe, given.out, given.steps)
            else:
                bundle = run_hyper(
                    given.recipe,
                    given.out,
                    given.steps,
                    base=given.base,
                    freeze_base=given.freeze_base,
                    command=command,
                )
                made = bundle.path
        except HyperdpError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        if state.is_main_process:
            print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
