"""Prepare CIFAR-10, MNIST or EuroSAT as a TFDS array_record dataset, without TensorFlow.

    vit-jax prepare-data cifar10
    vit-jax prepare-data mnist --archive FOLDER --data_dir DIR

Without --archive the official files are downloaded and their SHA-256 is verified.
"""

from collections.abc import Sequence
from pathlib import Path

from vit_jax.cli import command
from vit_jax.data import prepare


@command.main
def main(argv: Sequence[str]) -> None:
    """Prepare a dataset; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("name", choices=prepare.NAMES, help="dataset to prepare")
    parser.add_argument(
        "--archive",
        type=Path,
        help="local archive, instead of a download: cifar-10-binary.tar.gz, EuroSAT.zip or"
        " EuroSAT_RGB.zip, or for mnist a folder, zip or tar with its four .gz files; its"
        " structure is checked",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=prepare.default_data_dir(),
        help="folder of all datasets (default: $TFDS_DATA_DIR, then ~/tensorflow_datasets)",
    )
    args = parser.parse_args(argv)
    prepare.prepare(args.name, args.data_dir, args.archive)
