"""Prepares CIFAR-10, MNIST or EuroSAT as a TFDS array_record set, without TensorFlow.

    python scripts/prepare_data.py cifar10
    python scripts/prepare_data.py mnist --archive FOLDER --data_dir DIR

Without --archive the official files are downloaded and their sha256 is verified.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without an installation

from vit_jax.cli import command  # noqa: E402
from vit_jax.data import prepare  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    try:
        return command.run(lambda: prepare_data(argv))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def prepare_data(argv: list[str] | None) -> None:
    """Prepares as the arguments say; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("name", choices=prepare.NAMES, help="the set to prepare")
    parser.add_argument(
        "--archive",
        type=Path,
        help="an archive that is already here, instead of a download: cifar-10-binary.tar.gz,"
        " EuroSAT.zip or EuroSAT_RGB.zip, or for mnist a folder, zip or tar with its four .gz"
        " files; checked by its structure",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=prepare.default_data_dir(),
        help="the folder of all sets (default: $TFDS_DATA_DIR, then ~/tensorflow_datasets)",
    )
    args = parser.parse_args(argv)
    prepare.prepare(args.name, args.data_dir, args.archive)


if __name__ == "__main__":
    sys.exit(main())
