"""Features without a learned network: what any backbone has to beat.

In: pixels, uint8 `[n, h, w, 3]`. Out: float32 `[n, d]`, each part of unit length. Two kinds:

- colour and gradients: a joint HSV histogram (8 x 4 x 4 cells, square roots: Hellinger's distance) beside histograms of
  oriented gradients (Dalal and Triggs 2005, scikit-image: 9 orientations, cells of 16 px, blocks of 2 x 2 cells). At
  128 px 128 + 1,764 numbers; about 5 ms an image on one core.
- k-means patches (Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning"):
  6 x 6 patches brought to even contrast and whitened (ZCA), their distances to K centres turned into
  `max(0, mean distance - distance)` and summed over the four quadrants, 4 K numbers. About 20 ms an image of 64 px on
  two cores with 1,000 centres and a stride of 2.

Not covered: several patch sizes, spatial pyramids, or deeper stacks of the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

CELLS = (8, 4, 4)  # hue, saturation, value
SIDE = 6
PATCHES = 100_000
EVEN_CONTRAST = 10.0  # grey levels squared: what is added to a patch's variance
WHITENING = 0.1


def need_scikit_image() -> None:
    """End the program with a sentence if scikit-image is not installed."""
    try:
        import skimage  # noqa: F401
    except ImportError:
        sys.exit(
            "Histograms of oriented gradients come from scikit-image, which only this benchmark needs: "
            "pip install scikit-image"
        )


def colour_and_gradients(pixels: UInt8[np.ndarray, "n h w 3"], *, threads: int) -> Float32[np.ndarray, "n d"]:
    """A colour histogram and oriented gradients of every image, both of unit length."""
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(_colour_and_gradients, pixels)))


def _colour_and_gradients(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, " d"]:
    from skimage.color import rgb2hsv
    from skimage.feature import hog

    hsv = rgb2hsv(image).reshape(-1, 3)
    colours = np.histogramdd(hsv, bins=CELLS, range=((0, 1),) * 3)[0].ravel()
    gradients = hog(image, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2), channel_axis=-1)
    gradients = gradients / max(float(np.linalg.norm(gradients)), 1e-6)
    return np.concatenate([np.sqrt(colours / colours.sum()), gradients]).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class PatchCentres:
    """What was learned, without labels: whitened patch = `(patch - mean) @ whitening`; `centres` in that space."""

    mean: Float32[np.ndarray, " p"]
    whitening: Float32[np.ndarray, "p p"]
    centres: Float32[np.ndarray, "k p"]
    stride: int

    @property
    def bytes(self) -> int:
        """Of the three arrays in float32."""
        return self.mean.nbytes + self.whitening.nbytes + self.centres.nbytes


def learn_centres(
    pixels: UInt8[np.ndarray, "n h w 3"], *, count: int, stride: int, seed: int
) -> PatchCentres:
    """`count` centres of 100,000 patches drawn from all images; about 10 s for 1,000 centres on two cores."""
    from sklearn.cluster import MiniBatchKMeans

    random = np.random.default_rng(seed)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (SIDE, SIDE), axis=(1, 2))
    places = [random.integers(0, size, PATCHES) for size in windows.shape[:3]]
    drawn = np.sort(places[0])
    patches = _even(windows[drawn, places[1], places[2]].transpose(0, 2, 3, 1).reshape(PATCHES, -1))
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    whitening = ((vectors / np.sqrt(values + WHITENING)) @ vectors.T).astype(np.float32)
    found = MiniBatchKMeans(
        count, batch_size=4_096, max_iter=20, n_init=1, init="random", random_state=seed
    ).fit((patches - mean) @ whitening)
    return PatchCentres(mean, whitening, found.cluster_centers_.astype(np.float32), stride)


def patch_features(
    pixels: UInt8[np.ndarray, "n h w 3"], learned: PatchCentres, *, threads: int
) -> Float32[np.ndarray, "n d"]:
    """The triangle activations of every image, summed over its quadrants; square roots, of unit length."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return np.concatenate(list(_batches(pixels, learned)))
    finally:
        torch.set_num_threads(before)


def _batches(
    pixels: UInt8[np.ndarray, "n h w 3"], learned: PatchCentres, step: int = 8
) -> Iterator[Float32[np.ndarray, "b d"]]:
    """`|x - c|^2 = |x|^2 - 2 x c + |c|^2`, for all patches of a few images at once."""
    import torch

    centres = torch.from_numpy(learned.centres)
    mean, whitening = torch.from_numpy(learned.mean), torch.from_numpy(learned.whitening)
    lengths = centres.square().sum(1)
    for begin in range(0, len(pixels), step):
        some = torch.from_numpy(np.array(pixels[begin : begin + step])).permute(0, 3, 1, 2).float()
        windows = some.unfold(2, SIDE, learned.stride).unfold(3, SIDE, learned.stride)
        rows, columns = windows.shape[2:4]
        patches = windows.permute(0, 2, 3, 4, 5, 1).reshape(len(some) * rows * columns, -1)
        white = (torch.from_numpy(_even(patches.numpy())) - mean) @ whitening
        squared = torch.addmm(lengths[None], white, centres.T, alpha=-2.0)
        distances = squared.add_(white.square().sum(1, keepdim=True)).clamp_(min=0.0).sqrt_()
        near = distances.mean(1, keepdim=True).sub(distances).clamp_(min=0.0)
        maps = near.reshape(len(some), rows, columns, -1)
        halves = [
            (slice(None, rows // 2), slice(rows // 2, None)),
            (slice(None, columns // 2), slice(columns // 2, None)),
        ]
        pooled = [maps[:, y, x].sum((1, 2)) for y in halves[0] for x in halves[1]]
        yield torch.nn.functional.normalize(torch.cat(pooled, 1).sqrt()).numpy()


def _even(patches: np.ndarray) -> Float32[np.ndarray, "n p"]:
    """Each patch minus its mean, divided by its deviation."""
    rows = patches.astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.sqrt(rows.var(axis=1, keepdims=True) + EVEN_CONTRAST)
    return rows
