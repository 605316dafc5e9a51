"""Batches as a function of (seed, epoch), augmentation on marked pixels, normalisation, splits and random labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from svdo.data import Data, ImageDataset, ImageSplit, Normalizer, prepare
from svdo.data.images import NORMALIZATIONS
from svdo.data.known import Images
from svdo.errors import UserError

CPU = torch.device("cpu")


def noise_images(n: int = 60, side: int = 4, channels: int = 1, classes: int = 10, tests: int = 20) -> Images:
    rng = np.random.default_rng(0)
    shape = (side, side, channels)
    return Images(
        rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        rng.integers(0, classes, n, dtype=np.uint8),
        rng.integers(0, 256, (tests, *shape), dtype=np.uint8),
        rng.integers(0, classes, tests, dtype=np.uint8),
        classes,
    )


def numbered(n: int = 60) -> Images:
    """Image i is filled with i and labelled i % 10, so a batch tells which images it holds."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1)).copy()
    labels = (np.arange(n) % 10).astype(np.uint8)
    return Images(pixels, labels, pixels[:20].copy(), labels[:20].copy(), 10)


def prepared(images: Images, **settings: object) -> Data:
    return prepare(ImageDataset(**{"normalization": "none", **settings}), images, CPU)


def order(split: ImageSplit, size: int = 10, seed: int = 0, epoch: int = 0, start: int = 0) -> list[int]:
    return [int(i) for x, _ in split.batches(size, seed, epoch, start) for i in (255 * x[:, 0, 0, 0]).round()]


def marked(**augmentation: object) -> ImageSplit:
    """400 copies of a 6 x 6 image whose pixels are all different (1 ... 36), not normalised but for the / 255."""
    picture = np.arange(1, 37, dtype=np.uint8).reshape(1, 6, 6, 1).repeat(400, 0)
    zeros = np.zeros(400, np.uint8)
    return prepared(Images(picture, zeros, picture, zeros, 10), **augmentation).train


def pictures(split: ImageSplit, epoch: int = 0) -> Tensor:
    """The pixel values of one epoch, (N, H, W)."""
    return torch.cat([(255 * x[:, 0]).round().int() for x, _ in split.batches(100, 0, epoch)])


def windows(pad: int, mirrored: bool) -> list[Tensor]:
    """Every crop of the padded marked image, by slicing."""
    padded = torch.zeros(6 + 2 * pad, 6 + 2 * pad, dtype=torch.int32)
    padded[pad : pad + 6, pad : pad + 6] = torch.arange(1, 37).reshape(6, 6)
    crops = [padded[r : r + 6, c : c + 6] for r in range(2 * pad + 1) for c in range(2 * pad + 1)]
    return crops + [crop.flip(1) for crop in crops] if mirrored else crops


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    split = prepared(numbered()).train
    torch.manual_seed(1)
    first = order(split, seed=5, epoch=3)
    torch.manual_seed(2)
    assert order(split, seed=5, epoch=3) == first
    assert order(split, seed=5, epoch=4) != first
    assert order(split, seed=6, epoch=3) != first
    assert order(split, seed=3, epoch=5) != first


def test_batches_leave_the_global_generator_alone() -> None:
    split = prepared(numbered(), crop=1, flip=True).train
    before = torch.get_rng_state()
    order(split)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_is_a_permutation_that_shuffles() -> None:
    drawn = order(prepared(numbered()).train)
    assert sorted(drawn) == list(range(60))
    assert drawn != list(range(60))


def test_every_image_keeps_its_own_label() -> None:
    for x, y in prepared(numbered()).train.batches(10, 0, 0):
        assert torch.equal((255 * x[:, 0, 0, 0]).round().long() % 10, y)


@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_a_started_epoch_is_the_tail_of_the_full_one(start: int) -> None:
    split = prepared(noise_images(), crop=2, flip=True, normalization="pixel_mean").train
    full, tail = list(split.batches(10, 7, 2)), list(split.batches(10, 7, 2, start))
    assert len(tail) == 6 - start
    for (x, y), (x_tail, y_tail) in zip(full[start:], tail, strict=True):
        assert torch.equal(x, x_tail)
        assert torch.equal(y, y_tail)


def test_a_last_partial_batch_is_dropped() -> None:
    split = prepared(numbered()).train
    assert [len(y) for _, y in split.batches(25, 0, 0)] == [25, 25]
    assert [len(y) for _, y in split.batches(60, 0, 0)] == [60]
    assert list(split.batches(61, 0, 0)) == []


def test_what_one_epoch_drops_another_shows() -> None:
    split = prepared(numbered()).train
    assert {i for epoch in range(10) for i in order(split, size=50, epoch=epoch)} == set(range(60))


def test_chunks_are_everything_in_order_without_augmentation() -> None:
    images = noise_images(n=23, side=6)
    split = prepared(images, crop=2, flip=True).train
    chunks = list(split.chunks(10))
    assert [len(y) for _, y in chunks] == [10, 10, 3]
    expected = torch.from_numpy(images.train_images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.cat([x for x, _ in chunks]), expected)
    assert torch.equal(torch.cat([y for _, y in chunks]), torch.from_numpy(images.train_labels).long())


def test_batches_are_channels_first_float_with_int64_labels() -> None:
    x, y = next(iter(prepared(noise_images(channels=3), crop=1).train.batches(8, 0, 0)))
    assert x.shape == (8, 3, 4, 4)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_crop_gives_every_window_of_the_zero_padded_image_about_equally_often() -> None:
    # 2400 draws over 25 windows: 96 expected, 5 standard deviations are 48.
    counts = _frequencies(torch.cat([pictures(marked(crop=2), e) for e in range(6)]), windows(2, mirrored=False))
    assert sum(counts) == 2400
    assert all(48 <= count <= 144 for count in counts)


def test_flip_mirrors_half_of_the_images_left_to_right() -> None:
    counts = _frequencies(pictures(marked(flip=True)), windows(0, mirrored=True))
    assert sum(counts) == 400
    assert 150 <= counts[0] <= 250  # five standard deviations of 10


def test_crop_and_flip_together_give_the_mirrored_windows_too() -> None:
    counts = _frequencies(torch.cat([pictures(marked(crop=1, flip=True), e) for e in range(5)]), windows(1, mirrored=True))
    assert sum(counts) == 2000  # 18 pictures, 111 expected each
    assert all(60 <= count <= 163 for count in counts)


def test_augmentation_changes_from_epoch_to_epoch_and_is_off_by_default() -> None:
    assert not torch.equal(pictures(marked(crop=2), 0), pictures(marked(crop=2), 1))
    assert _frequencies(pictures(marked()), windows(0, mirrored=False)) == [400]


def test_augmentation_draws_per_image_and_not_per_batch() -> None:
    batch = pictures(marked(flip=True))[:100]
    assert 1 < len(torch.unique(batch.flatten(1), dim=0)) <= 2


def _frequencies(drawn: Tensor, possible: list[Tensor]) -> list[int]:
    return [int((drawn == picture).flatten(1).all(1).sum()) for picture in possible]


def test_augmented_pixels_of_each_channel_stay_together() -> None:
    images = noise_images(n=40, side=5, channels=3)
    split = prepared(images, crop=1, flip=True).train
    for x, _ in split.batches(10, 0, 0):
        for picture in (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
            inner = {tuple(p) for p in picture.reshape(-1, 3)} - {(0, 0, 0)}
            assert any(inner <= {tuple(p) for p in source.reshape(-1, 3)} for source in images.train_images)


def test_test_and_validation_images_are_never_augmented() -> None:
    data = prepared(noise_images(), crop=2, flip=True, validation=10)
    assert data.validation is not None
    for part in (data.test, data.validation):
        assert not part.crop
        assert not part.flip


def whole(split: ImageSplit) -> np.ndarray:
    """All normalised images, (N, H, W, C) float64."""
    return torch.cat([x for x, _ in split.chunks(1000)]).permute(0, 2, 3, 1).double().numpy()


def test_pixel_mean_divides_by_256_and_subtracts_the_training_mean_image() -> None:
    images = noise_images(n=200, channels=3)
    data = prepared(images, normalization="pixel_mean")
    mean = images.train_images.astype(np.float64).mean(0)
    np.testing.assert_allclose(whole(data.train), (images.train_images - mean) / 256, atol=1e-6)
    np.testing.assert_allclose(whole(data.test), (images.test_images - mean) / 256, atol=1e-6)


def test_standard_gives_each_channel_mean_0_and_deviation_1_over_the_training_set() -> None:
    images = noise_images(n=300, channels=3)
    images.train_images[..., 1] //= 8
    data = prepared(images, normalization="standard")
    x = whole(data.train).reshape(-1, 3)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-4)
    pixels = images.train_images.reshape(-1, 3).astype(np.float64)
    expected = (images.test_images - pixels.mean(0)) / pixels.std(0)
    np.testing.assert_allclose(whole(data.test), expected, atol=1e-4)


def test_no_normalisation_puts_pixels_between_0_and_1() -> None:
    images = noise_images()
    np.testing.assert_allclose(whole(prepared(images).train), images.train_images / 255, atol=1e-6)


def correlated_images(n: int = 2000) -> Images:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(n + 500, 12)) @ rng.normal(size=(12, 12)) * 12 + 128
    pixels = mixed.clip(0, 255).astype(np.uint8).reshape(-1, 2, 2, 3)
    labels = rng.integers(0, 10, n + 500, dtype=np.uint8)
    return Images(pixels[:n], labels[:n], pixels[n:], labels[n:], 10)


def test_zca_whitens_the_training_set() -> None:
    x = whole(prepared(correlated_images(), normalization="zca").train).reshape(2000, 12)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(12), atol=1e-3)


def test_zca_is_the_symmetric_whitening_and_is_learned_from_training_images_alone() -> None:
    images = correlated_images()
    data = prepared(images, normalization="zca")
    flat = images.train_images.reshape(-1, 12).astype(np.float64)
    test = images.test_images.reshape(-1, 12) - flat.mean(0)
    # A symmetric positive W with W C W = 1 is the inverse square root of the covariance C, and unique.
    x = whole(data.test).reshape(-1, 12)
    w = np.linalg.lstsq(test, x, rcond=None)[0]
    np.testing.assert_allclose(w, w.T, atol=1e-4)
    assert np.linalg.eigvalsh((w + w.T) / 2).min() > 0
    np.testing.assert_allclose(w @ np.cov(flat.T, bias=True) @ w, np.eye(12), atol=1e-3)


def test_zca_keeps_a_constant_pixel_finite() -> None:
    images = noise_images(n=100)
    images.train_images[:, 0, 0] = 7
    images.test_images[:, 0, 0] = 7
    assert np.isfinite(whole(prepared(images, normalization="zca").test)).all()


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_validation_and_unused_images_never_touch_the_statistics(kind: str) -> None:
    images = noise_images(n=100)
    reference = whole(prepared(images, normalization=kind, validation=20, subset=50).test)
    images.train_images[50:] = 255
    np.testing.assert_array_equal(whole(prepared(images, normalization=kind, validation=20, subset=50).test), reference)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_batches_and_chunks_normalise_alike(kind: str) -> None:
    split = prepared(noise_images(n=40), normalization=kind).train
    batched = torch.cat([x for x, _ in split.batches(40, 0, 0)]).flatten(1)
    chunked = torch.cat([x for x, _ in split.chunks(7)]).flatten(1)
    torch.testing.assert_close(batched.sort(0).values, chunked.sort(0).values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normaliser_gives_float32_of_the_images_shape(kind: str) -> None:
    pixels = torch.randint(0, 256, (50, 3, 4, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = Normalizer.fit(kind, pixels)(pixels)
    assert x.shape == pixels.shape
    assert x.dtype == torch.float32


def test_validation_is_the_last_images_and_leaves_the_rest_for_training() -> None:
    data = prepared(numbered(), validation=15)
    assert data.validation is not None
    np.testing.assert_array_equal((255 * whole(data.validation)[:, 0, 0, 0]).round(), np.arange(45, 60))
    np.testing.assert_array_equal((255 * whole(data.train)[:, 0, 0, 0]).round(), np.arange(45))
    np.testing.assert_array_equal(data.validation.labels, np.arange(45, 60) % 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 15, 20)
    assert data.spec.shape == (1, 2, 2)
    assert data.spec.classes == 10


def test_subset_is_the_first_images_and_keeps_the_validation_images() -> None:
    data = prepared(numbered(), validation=15, subset=8)
    assert data.validation is not None
    np.testing.assert_array_equal((255 * whole(data.train)[:, 0, 0, 0]).round(), np.arange(8))
    assert len(data.validation) == 15
    with pytest.raises(UserError, match=r"subset=50 exceeds the 45 training images beside dataset\.validation=15"):
        prepared(numbered(), validation=15, subset=50)
    assert prepared(numbered()).validation is None
    test, few = prepared(numbered()).test, prepared(numbered(), test_subset=3).test
    np.testing.assert_array_equal(whole(few), whole(test)[:3])
    assert few.labels.tolist() == test.labels.tolist()[:3]


def test_no_training_image_left_is_refused() -> None:
    assert len(prepared(numbered(), validation=59).train) == 1
    with pytest.raises(UserError, match="60"):
        prepared(numbered(), validation=60)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_random_labels_replace_the_asked_share_by_uniform_classes(share: float) -> None:
    images = noise_images(n=8000, side=1)
    labels = prepared(images, random_labels=share).train.labels
    true = torch.from_numpy(images.train_labels).long()
    changed = (labels != true).float().mean().item()
    # A replaced label differs from the true one in nine of ten cases; five standard deviations.
    expected = 0.9 * share
    assert changed == pytest.approx(expected, abs=5 * (0.09 * share / 8000) ** 0.5)
    new = torch.bincount(labels[labels != true], minlength=10).float()
    assert new.min() > 0.7 * new.mean()
    assert new.max() < 1.3 * new.mean()


def test_random_labels_are_fixed_by_their_own_seed() -> None:
    images = noise_images(n=500, side=1)
    torch.manual_seed(1)
    first = prepared(images, random_labels=1.0).train.labels
    torch.manual_seed(2)
    assert torch.equal(prepared(images, random_labels=1.0).train.labels, first)
    assert not torch.equal(prepared(images, random_labels=1.0, label_seed=1).train.labels, first)


def test_random_labels_never_reach_test_validation_or_the_source() -> None:
    images = noise_images(n=500, side=1)
    source = images.train_labels.copy()
    data = prepared(images, random_labels=1.0, validation=100)
    assert data.validation is not None
    np.testing.assert_array_equal(data.test.labels, images.test_labels)
    np.testing.assert_array_equal(data.validation.labels, source[400:])
    np.testing.assert_array_equal(images.train_labels, source)
    assert (data.train.labels.numpy() != source[:400]).any()


def test_random_labels_are_drawn_once_and_the_same_in_every_epoch() -> None:
    split = prepared(numbered(), random_labels=1.0).train
    seen = [
        {int(i): int(c) for x, y in split.batches(10, 0, epoch) for i, c in zip((255 * x[:, 0, 0, 0]).round(), y, strict=True)}
        for epoch in range(2)
    ]
    assert seen[0] == seen[1]
    assert any(label != i % 10 for i, label in seen[0].items())


def test_without_random_labels_the_labels_are_the_true_ones() -> None:
    np.testing.assert_array_equal(prepared(numbered()).train.labels, np.arange(60) % 10)
