"""Fetch a data set (or check the copy that is there) and say what came: ``python scripts/fetch_data.py cifar10``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from svdo import UserError
from svdo.config import Config
from svdo.data.known import FIELDS, KNOWN
from svdo.data.sources import load


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(KNOWN))
    parser.add_argument(
        "--data-dir", type=Path, default=Path(os.environ.get("SVDO_DATA", Config.data_dir)), help="default: %(default)s"
    )
    chosen = parser.parse_args()
    try:
        images = load(chosen.name, chosen.data_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = "bundled with svdo" if chosen.name == "mnist" else chosen.data_dir.expanduser() / f"{chosen.name}.npz"
    print(f"{chosen.name}: {images.classes} classes, {where}")
    for field in FIELDS:
        array = getattr(images, field)
        print(f"  {field}: {array.dtype} {array.shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
