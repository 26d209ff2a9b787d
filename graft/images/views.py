"""Random views of training images: what may change in a picture without changing its class.

In: a batch of uint8 pixels and a `torch.Generator`. Out: float images in 0..1 of the same shape. Which mirrorings are
allowed is measured on the training images (`symmetries`), the rest follows from the kind and number of images.

Geometry is drawn for every image, colour and erasing for groups of four (a shuffled batch makes them strangers), which
torchvision does three times faster. 3,000 (colour) to 4,700 (grey) views of 96 px a second and core.

Not covered: boxes and masks; views of 16-bit images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torchvision.transforms import v2

from graft.images.augmentations import Augmentation as Augmentation
from graft.images.augmentations import Symmetry as Symmetry

GROUP = 4
FILL = 128  # where a turned picture leaves nothing
THUMB = 12
TOLD_BY_CLASS = 0.65
TOLD_BY_ANY = 0.53
"""A symmetry is not used when more than these shares of the images betray that it was applied: within their class with what
all classes have in common (such as light from above) taken away; and with it, within their class or among all."""

APPLY: dict[Symmetry, Callable[[np.ndarray], np.ndarray]] = {
    "mirror": lambda x: x[:, :, ::-1],
    "upside_down": lambda x: x[:, ::-1],
    "transpose": lambda x: x.swapaxes(1, 2),
}


class _Upright(v2.TrivialAugmentWide):
    """TrivialAugment without its turns of up to 135 degrees, for images that have an up and a down."""

    _AUGMENTATION_SPACE: ClassVar[dict[str, Any]] = {
        name: how for name, how in v2.TrivialAugmentWide._AUGMENTATION_SPACE.items() if name != "Rotate"
    }


def suited(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
) -> Augmentation:
    """The augmentation for these training images; only `rows` are read.

    A crop may lose 60 % of a colour image but only 15 % of a grey one, because what matters there may be a small spot
    at the edge. Symmetries are those that the images themselves show.
    """
    grey = pixels.shape[3] == 1
    found = symmetries(pixels, targets, rows)
    if grey:
        return Augmentation(found, smallest_crop=0.85, jitter=0.15, erase=0.0)
    return Augmentation(found, smallest_crop=0.4, jitter=0.3, erase=0.15)


def natural(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    most: int = 2_000,
) -> tuple[Symmetry, ...]:
    """The mirrorings that leave pictures as they might have been taken: at most `most` of `rows` are read.

    A mirrored picture always is one. To be turned upside down or transposed, images must not betray that they were:
    photos have an up and a down, and a surface with a grain that is turned is harder to learn. Grey ones may betray it by
    what all classes share, as surfaces do that were lit from above, but not by what they show: outlines of things have an
    up and a down, too, and a network that is tuned learns them better upright (accuracy 0.755 for 0.729, MobileNetV2,
    1,020 outlines of 51 classes). How that is measured is told at `symmetries`.
    """
    thumbs, labels = _chosen(pixels, targets, rows, most)
    grey = pixels.shape[3] == 1

    def betrayed(name: Symmetry) -> bool:
        differences = _differences(thumbs, APPLY[name])
        if name == "upside_down" and grey:
            return max(_told(one - one.mean(0), labels) for one in differences) > TOLD_BY_CLASS
        # All together as well: where classes are small, those of one class cannot betray it.
        every = np.zeros_like(labels)
        return max(_told(one, own) for one in differences for own in (labels, every)) > TOLD_BY_ANY

    return tuple(name for name in APPLY if name == "mirror" or not betrayed(name))


def symmetries(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    *,
    most: int = 2_000,
) -> tuple[Symmetry, ...]:
    """The mirrorings that are natural and keep the class, as far as the pixels tell, where no backbone is asked.

    An image is compared with its mirror image, a_i = f(x_i) - f(mirror(x_i)), for f a thumbnail and for f the edge
    strengths along both axes. If the class does not care, a_i is as likely as -a_i, so the share of images for which
    a_i agrees in sign with the mean of the others of its class is a half. What all classes share is taken away first:
    a lamp at one side says nothing about the class. Measured shares for mirror, upside down: photos 0.49, 0.53; grey
    surfaces 0.62, 0.61; outlines of things 0.64, 0.71; digits 0.93, 0.94. Few images, or things that are alike but for a small part, may pass
    wrongly: 20 photos of motorbikes, every other one mirrored, do.
    """
    thumbs, labels = _chosen(pixels, targets, rows, most)
    return tuple(
        name
        for name in natural(pixels, targets, rows, most=most)
        if max(_told(one - one.mean(0), labels) for one in _differences(thumbs, APPLY[name])) <= TOLD_BY_CLASS
    )


def views(
    images: UInt8[Tensor, "n c h w"], augmentation: Augmentation, *, generator: torch.Generator
) -> Float32[Tensor, "n c h w"]:
    """One random view of every image. The draws depend on the generator alone; torch's global one stays as it was."""
    if augmentation.still:
        return images.float() / 255
    seed = int(torch.randint(2**62, (), generator=generator))
    geometry, colour = _transforms(augmentation, tuple(images.shape[1:]))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        moved = torch.stack([geometry(image) for image in images])
        if "transpose" in augmentation.symmetries:
            turned = torch.rand(len(moved)) < 0.5
            moved[turned] = moved[turned].transpose(2, 3)
        return torch.cat([colour(group) for group in moved.split(GROUP)])


def fixed_view(
    image: UInt8[np.ndarray, "h w c"], augmentation: Augmentation, *, seed: int, number: int, view: int
) -> Float32[Tensor, "1 c h w"]:
    """View number `view` of image number `number` in 0..1; view 0 is the image as it is."""
    plain = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    if view == 0:
        return plain.float() / 255
    drawn = int(np.random.SeedSequence([seed, number, view]).generate_state(1, np.uint64)[0] >> 2)
    return views(plain, augmentation, generator=torch.Generator().manual_seed(drawn))


def _transforms(augmentation: Augmentation, shape: tuple[int, ...]) -> tuple[v2.Transform, v2.Transform]:
    """What is drawn for every image, and what is drawn for groups of them."""
    channels, height, width = shape
    geometry: list[v2.Transform] = [
        v2.RandomResizedCrop(
            (height, width),
            (augmentation.smallest_crop, 1.0),
            (1 / augmentation.stretch, augmentation.stretch),
            antialias=True,
        )
    ]
    if "mirror" in augmentation.symmetries:
        geometry.append(v2.RandomHorizontalFlip())
    if "upside_down" in augmentation.symmetries:
        geometry.append(v2.RandomVerticalFlip())
    jitter, saturation, hue = augmentation.jitter, augmentation.jitter / 2, augmentation.hue
    colour: list[v2.Transform] = []
    if augmentation.degrees > 0:
        colour.append(v2.RandomRotation(augmentation.degrees, v2.InterpolationMode.BILINEAR, fill=FILL))
    if augmentation.trivial:
        turned = "upside_down" in augmentation.symmetries
        colour.append((v2.TrivialAugmentWide if turned else _Upright)(fill=FILL))
    colour += [
        v2.ColorJitter(jitter, jitter, *((saturation, hue) if channels == 3 else ())),
        v2.ToDtype(torch.float32, scale=True),
    ]
    if augmentation.erase > 0:
        colour.append(v2.RandomErasing(augmentation.erase, scale=(0.02, 0.15), value=0.5))
    return v2.Compose(geometry), v2.Compose(colour)


def _chosen(
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int64[np.ndarray, " n"],
    rows: Int64[np.ndarray, " m"],
    most: int,
) -> tuple[Float32[np.ndarray, "k y x"], Int64[np.ndarray, " k"]]:
    """Thumbnails and targets of at most `most` rows, evenly spread."""
    chosen = rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    return _thumbnails(pixels, chosen), targets[chosen]


def _differences(
    thumbs: Float32[np.ndarray, "m y x"], apply: Callable[[np.ndarray], np.ndarray]
) -> list[Float[np.ndarray, "m _"]]:
    """How pictures and edges differ from those of the mirror images."""
    return [feature(thumbs) - feature(apply(thumbs)) for feature in (_shape, _edges)]


def _thumbnails(
    pixels: UInt8[np.ndarray, "n h w c"], rows: Int64[np.ndarray, " m"]
) -> Float32[np.ndarray, "m y x"]:
    """Grey, block-averaged to about twice `THUMB` pixels a side, square, each with mean 0 and deviation 1."""
    size = 2 * THUMB
    grey = torch.from_numpy(np.stack([pixels[row].mean(axis=2, dtype=np.float32) for row in rows]))
    small = torch.nn.functional.adaptive_avg_pool2d(grey[:, None], size)[:, 0].numpy()
    small = small - small.mean((1, 2), keepdims=True)
    return small / np.maximum(small.std((1, 2), keepdims=True), 1e-3)


def _shape(thumbs: Float32[np.ndarray, "m y x"]) -> Float[np.ndarray, "m f"]:
    """The picture as it is."""
    return thumbs.reshape(len(thumbs), -1)


def _edges(thumbs: Float32[np.ndarray, "m y x"]) -> Float[np.ndarray, "m f"]:
    """How strong the edges along each axis are, in the whole picture."""
    across = np.abs(np.diff(thumbs, axis=2)).mean((1, 2))
    down = np.abs(np.diff(thumbs, axis=1)).mean((1, 2))
    return np.log(np.stack([across, down], axis=1) + 1e-3)


def _told(differences: Float[np.ndarray, "m f"], labels: Int64[np.ndarray, " m"]) -> float:
    """The share of images whose difference agrees with the mean of the others of its class; ties count a half."""
    agreements = []
    for label in np.unique(labels):
        own = differences[labels == label].astype(np.float64)
        agreement = own @ own.sum(0) - (own * own).sum(1)
        scale = max(float((own * own).sum()), 1e-12)
        agreements.append(np.where(np.abs(agreement) <= 1e-9 * scale, 0.5, agreement > 0))
    return float(np.concatenate(agreements).mean())
