"""The datasets that can be prepared: their TFDS names and their official files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vit_jax.data.prepare import parsers
from vit_jax.data.prepare.download import Archive


@dataclass(frozen=True)
class Dataset:
    """The TFDS metadata of a dataset, and its official archives.

    `parse` checks and reads the archive, or the folder or archive that contains several of them, as
    {split: examples}; it raises `UserError`.
    """

    name: str
    version: str
    description: str
    shape: tuple[int, int, int]
    encoding: str
    class_names: tuple[str, ...]
    archives: tuple[Archive, ...]
    parse: Callable[[Path], dict[str, parsers.Examples]]
    config: str = ""  # TFDS config; "" for none
    text_feature: str = ""  # next to "image" and "label"


# The official files: sha256, size and name, as in TFDS.
_CHECKSUMS = """
c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd 170052171 cifar-10-binary.tar.gz
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 9912422 train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 28881 train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 1648877 t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 4542 t10k-labels-idx1-ubyte.gz
8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd 94280567 EuroSAT.zip
"""


def _archives(pattern: str, *hosts: str) -> tuple[Archive, ...]:
    files = [line.split() for line in _CHECKSUMS.strip().splitlines()]
    return tuple(
        Archive(tuple(host + name for host in hosts), sha256, int(size))
        for sha256, size, name in files
        if name.endswith(pattern)
    )


_CIFAR10 = Dataset(
    name="cifar10",
    version="3.0.2",
    description="CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html), stored losslessly.",
    shape=(32, 32, 3),
    encoding="png",
    class_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    archives=_archives("cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/"),
    parse=parsers.parse_cifar10,
    text_feature="id",
)
_MNIST = Dataset(
    name="mnist",
    version="3.0.1",
    description="MNIST (http://yann.lecun.com/exdb/mnist/), stored losslessly.",
    shape=(28, 28, 1),
    encoding="png",
    class_names=tuple("0123456789"),
    archives=_archives(
        "-ubyte.gz",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    parse=parsers.parse_mnist,
)
_EUROSAT = Dataset(
    name="eurosat",
    version="2.0.0",
    description="EuroSAT RGB (https://github.com/phelber/eurosat), as the official JPEG files.",
    shape=(64, 64, 3),
    encoding="jpeg",
    class_names=tuple(parsers.EUROSAT_CLASSES),
    archives=_archives(
        "EuroSAT.zip",
        "https://madm.dfki.de/files/sentinel/",
        # the same file, as in torchvision
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/",
    ),
    parse=parsers.parse_eurosat,
    config="rgb",
    text_feature="filename",
)

DATASETS = {dataset.name: dataset for dataset in (_CIFAR10, _MNIST, _EUROSAT)}
