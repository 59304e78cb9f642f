"""Build a base box: ``python -m vagrant.box BUNDLE --key release.pub --output node.box``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.errors import UpdaterError
from vagrant.box.build import Provider, build_box


def main(argv: list[str]) -> int:
    """Build, and say what to do with it."""
    parser = argparse.ArgumentParser(prog="python -m vagrant.box", description="Build a base box for Vagrant.")
    parser.add_argument("bundle", type=Path, help="the release in slot a")
    parser.add_argument("--key", type=Path, required=True, help="the public key that has signed it")
    parser.add_argument("--output", type=Path, required=True, help="the box; a new file")
    parser.add_argument("--provider", type=Provider, choices=list(Provider), default=Provider.LIBVIRT)
    parser.add_argument("--node", type=Path, help="node.toml of the box, instead of the usual one")
    wanted = parser.parse_args(argv)
    if wanted.output.exists():
        parser.error(f"{wanted.output} exists")
    try:
        node = wanted.node.read_text() if wanted.node else ""
        box = build_box(wanted.bundle, wanted.key, wanted.output.absolute(), provider=wanted.provider, node_toml=node)
    except UpdaterError as error:
        print(f"error: {error}", *error.what, sep="\n  ", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{box}   {box.stat().st_size >> 20} MiB; now: vagrant box add --name updater {box}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
