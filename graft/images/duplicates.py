"""Which images are the same picture, or nearly so: exact, recompressed, resized, brightened, slightly cropped, mirrored.

In: a small grey thumbnail and a coarse grid of colours per image (`sketch`). Out: pairs of near-duplicates with their
similarity (`near_pairs`), and groups that must stay on one side of every split (`grouped`).

Method. A thumbnail becomes a vector of its low cosine frequencies without the lowest (which hold the lighting), each
weighted by its frequency, then whitened by the second moments of the dataset itself: what many images share (a template,
a background, a texture) counts little, and unrelated images are nearly orthogonal whatever the dataset. Pairs that
correlate are aligned (stretch and shift per axis, by least squares on the gradients: Lucas and Kanade 1981) and judged
on more frequencies. A pair counts if it is far closer than either image is to its twentieth nearest neighbour (the
ratio test of Lowe 2004): in a crowd of look-alikes such as small garments, it takes more to be the same picture.

Cost: n^2 products of vectors of 119 numbers in blocks of 64 MB; 20,000 images take 7 s of one core. Not covered:
rotations, crops beyond about a tenth of a side, pictures inside pictures; images without any contrast are only compared
byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from PIL import Image

SIDE = 32
GRID = 4
VERSION = 1

# Cosine frequencies in half-cycles per side. Below the lowest: the lighting; above the highest: recompression noise.
_LOWEST, _SEARCH_HIGHEST, _JUDGE_HIGHEST = 1.5, 12, 16
# With fewer images than this the whitening leans on the plain frequency weights.
_PRIOR_IMAGES = 20
_LEAST_CONTRAST = 2.0
_SEARCH_LEAST, _JUDGE_LEAST = (0.3, 0.45), 0.76
_NEIGHBOUR = 20
_SERIES_SHARE = 0.2
# In a set made of series: copies of photos recompressed at quality 50, halved or mirrored score 0.987 and more, other
# exposures of one surface 0.83 to 0.98.
CLOSEST = 0.975
_SEARCH_RATIO, _JUDGE_RATIO = 0.85, 0.4
_CANDIDATES_EACH = 3
_HITS_EACH = 150
_BLOCK_BYTES = 64 * 1024**2
_PAIRS_AT_ONCE = 1000
_TINT_GAP = 24.0

Pairs = Int64[np.ndarray, "_ 2"]
Thumbnails = UInt8[np.ndarray, "n 32 32"]
Tints = UInt8[np.ndarray, "n 4 4 3"]


def sketch(image: Image.Image) -> tuple[UInt8[np.ndarray, "32 32"], UInt8[np.ndarray, "4 4 3"]]:
    """The grey thumbnail and the grid of mean colours of an image in mode "L" or "RGB"."""
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    tints = small.convert("RGB").resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small.convert("L")), np.asarray(tints)


def near_pairs(
    thumbnails: Thumbnails, tints: Tints
) -> tuple[Int64[np.ndarray, "m 2"], Float32[np.ndarray, " m"], UInt8[np.ndarray, " m"]]:
    """Pairs `(i, j)` with `i < j`, sorted; their similarity up to 1; and 1 where one is the mirror image of the other."""
    told = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= _LEAST_CONTRAST)
    if len(told) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32), np.empty(0, np.uint8)
    thumbnails, tints = thumbnails[told], tints[told]
    search = _Space(thumbnails, _SEARCH_HIGHEST)
    judge = _Space(thumbnails, _JUDGE_HIGHEST)
    plain, crowd = _candidates(search(thumbnails), search(thumbnails[:, :, ::-1]))
    found = []
    for mirrored, pairs in enumerate(plain):
        first, second = pairs.T
        scores = _scores(judge, thumbnails, pairs, flip=bool(mirrored))
        needed = 1 - _JUDGE_RATIO * (1 - np.maximum(crowd[first], crowd[second]))
        colours = tints[second][:, :, ::-1] if mirrored else tints[second]
        kept = (scores >= np.maximum(_JUDGE_LEAST, needed)) & _same_colours(tints[first], colours)
        found.append((told[pairs[kept]], scores[kept], np.full(kept.sum(), mirrored, np.uint8)))
    pairs, scores, mirrors = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((mirrors, -scores, pairs[:, 1], pairs[:, 0]))
    pairs, scores, mirrors = pairs[order], scores[order], mirrors[order]
    fresh = np.ones(len(pairs), bool)  # a symmetric picture is its own mirror image: the better reading stays
    fresh[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[fresh], scores[fresh], mirrors[fresh]


def in_series(groups: Int64[np.ndarray, " n"]) -> bool:
    """Whether the likeness is how the set was made: more than a fifth of the images in groups of three or more.

    A few copies are accidents, and any likeness that shows them may count. Where each subject was photographed
    several times, all views of it are alike, and which of them are near-duplicates is a matter of degree (`CLOSEST`).
    """
    sizes = np.bincount(groups)
    return bool((sizes[groups] >= 3).mean() > _SERIES_SHARE)


def grouped(count: int, *links: Pairs) -> Int64[np.ndarray, " n"]:
    """Groups 0, 1, ... in order of first appearance: images that any chain of links connects have one number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joined = np.concatenate([np.empty((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(joined), np.int8), (joined[:, 0], joined[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def equal_pairs(values: Sequence[str | None]) -> Pairs:
    """Links between images with equal values; None equals nothing."""
    first: dict[str, int] = {}
    links = [
        (first[value], place)
        for place, value in enumerate(values)
        if value is not None and first.setdefault(value, place) != place
    ]
    return np.array(links, np.int64).reshape(-1, 2)


class _Space:
    """Whitened cosine frequencies up to `highest`: calling it with thumbnails `[n, 32, 32]` gives unit vectors."""

    def __init__(self, thumbnails: Thumbnails, highest: int) -> None:
        waves = _cosines()
        radius = np.hypot(*np.mgrid[:SIDE, :SIDE])
        down, across = np.nonzero((radius >= _LOWEST) & (radius <= highest))
        basis = waves[down][:, :, None] * waves[across][:, None, :] * radius[down, across, None, None]
        self._basis = basis.reshape(len(down), -1).T.astype(np.float32)
        vectors = self._frequencies(thumbnails)
        count, size = vectors.shape
        prior = _PRIOR_IMAGES * np.eye(size) / size
        spread = (vectors.T @ vectors + prior) / (count + _PRIOR_IMAGES)
        values, axes = np.linalg.eigh(spread)
        self._whiten = (axes / np.sqrt(values) @ axes.T).astype(np.float32)

    def __call__(self, thumbnails: np.ndarray) -> Float32[np.ndarray, "n d"]:
        return _unit(self._frequencies(thumbnails) @ self._whiten)

    def _frequencies(self, thumbnails: np.ndarray) -> Float32[np.ndarray, "n d"]:
        return _unit(thumbnails.reshape(len(thumbnails), -1).astype(np.float32) @ self._basis)


def _cosines() -> Float64[np.ndarray, "32 32"]:
    """The orthonormal cosine transform (DCT-II): row k holds k half-cycles over the side."""
    place = (np.arange(SIDE) + 0.5) / SIDE
    waves = np.cos(np.pi * np.arange(SIDE)[:, None] * place) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    return waves


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _candidates(
    vectors: Float32[np.ndarray, "n d"], mirrored: Float32[np.ndarray, "n d"]
) -> tuple[tuple[Pairs, Pairs], Float32[np.ndarray, " n"]]:
    """Pairs worth judging, as they are and mirrored; and how close the twentieth neighbour of each image is."""
    count = len(vectors)
    crowd = np.zeros(count, np.float32)
    bar = _bar(vectors)
    straight, flipped = [], []
    step = max(1, _BLOCK_BYTES // (4 * count))
    for start in range(0, count, step):
        block = vectors[start : start + step]
        row, column, score, rank = _hits(block @ vectors.T, start, bar)
        at = rank == _NEIGHBOUR - 1
        crowd[row[at]] = score[at]
        straight.append((row, column, score, rank))
        flipped.append(_hits(block @ mirrored.T, start, bar))
    kept = []
    for hits in (straight, flipped):
        row, column, score, rank = (np.concatenate(part) for part in zip(*hits, strict=True))
        alike = 1 - score <= _SEARCH_RATIO * (1 - np.maximum(crowd[row], crowd[column]))
        alike &= rank < _CANDIDATES_EACH
        ends = np.sort(np.stack([row[alike], column[alike]], axis=1), axis=1)
        kept.append(np.unique(ends, axis=0))
    return (kept[0], kept[1]), crowd


def _bar(vectors: Float32[np.ndarray, "n d"]) -> float:
    """About the highest correlation that unrelated vectors reach by chance, within what has proved useful."""
    count, size = vectors.shape
    return float(np.clip(np.sqrt(4 * np.log(count) / size), *_SEARCH_LEAST))


def _hits(scores: Float32[np.ndarray, "r n"], start: int, bar: float) -> tuple[np.ndarray, ...]:
    """Row, column, score and rank within the row of the entries worth a look; `start` is the number of the first row.

    In a crowd the bar rises until an image has 150 of them on average.
    """
    rows, columns = scores.shape
    scores[np.arange(rows), start + np.arange(rows)] = -1
    while np.count_nonzero(above := scores >= np.float32(bar)) > _HITS_EACH * rows and bar < 0.999:
        bar += (1 - bar) / 4
    row, column = np.divmod(np.flatnonzero(above), columns)
    score = scores[row, column]
    order = np.lexsort((-score, row))
    row, column, score = row[order], column[order], score[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return row + start, column, score, rank


def _scores(
    judge: _Space, thumbnails: Thumbnails, pairs: Int64[np.ndarray, "m 2"], *, flip: bool
) -> Float32[np.ndarray, " m"]:
    """The correlation of each pair in the space `judge`, as they lie or aligned, whichever is higher."""
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        one, two = thumbnails[pairs[part]].astype(np.float32).transpose(1, 0, 2, 3)
        two = two[:, :, ::-1] if flip else two
        direct = np.einsum("md,md->m", judge(one), judge(two))
        moved, still = _aligned(one, two)
        scores[part] = np.maximum(direct, np.einsum("md,md->m", judge(moved), judge(still)))
    return scores


def _aligned(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair with the picture that shows more cut down to the other."""
    motion = np.zeros((len(one), 4), np.float32)
    for coarse, steps in ((2, 3), (1, 2)):
        still, moving = _shrunk(one, coarse), _shrunk(two, coarse)
        for _ in range(steps):
            motion = _improved(still, moving, motion)
    wider = (motion[:, 0] + motion[:, 2] > 0)[:, None, None]
    back = -motion / (1 + motion[:, [0, 0, 2, 2]])
    motion = np.where(wider[:, :, 0], back, motion)
    moving, still = np.where(wider, one, two), np.where(wider, two, one)
    return _warped(moving, motion), still


def _improved(still: np.ndarray, moving: np.ndarray, motion: np.ndarray) -> Float32[np.ndarray, "m 4"]:
    """One Gauss-Newton step of (stretch, shift) across and down, in shares of the side; gain and offset are free."""
    count, side, _ = still.shape
    now = _warped(moving, motion)
    place = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    down, across = (part * side for part in np.gradient(now, axis=(1, 2)))
    light = now - now.mean(axis=(1, 2), keepdims=True)
    slopes = [across * place, across, down * place[:, None], down, light, np.ones_like(now)]
    slope = np.stack([part.reshape(count, -1) for part in slopes], axis=1)
    normal = slope @ slope.transpose(0, 2, 1)
    diagonal = np.einsum("mkk->mk", normal)
    diagonal += 1e-3 * diagonal + 1e-3
    move = np.linalg.solve(normal, slope @ still.reshape(count, -1, 1))[:, :, 0]
    gain = np.where(np.abs(move[:, 4:5]) > 0.2, move[:, 4:5], 1)
    return np.clip(motion + move[:, :4] / gain, -0.15, 0.15).astype(np.float32)


def _warped(images: np.ndarray, motion: np.ndarray) -> Float32[np.ndarray, "m s s"]:
    """The images resampled (bilinear) after stretching and shifting both axes by shares of the side."""
    side = images.shape[1]
    place = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)

    def sampling(stretch: np.ndarray, shift: np.ndarray) -> np.ndarray:
        wanted = ((place * (1 + stretch[:, None]) + shift[:, None]) + 0.5) * side - 0.5
        wanted = np.clip(wanted, 0, side - 1)
        return np.maximum(0, 1 - np.abs(wanted[:, :, None] - np.arange(side, dtype=np.float32)))

    across, down = sampling(motion[:, 0], motion[:, 1]), sampling(motion[:, 2], motion[:, 3])
    return (down @ images @ across.transpose(0, 2, 1)).astype(np.float32)


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    count, side, _ = images.shape
    return images.reshape(count, side // factor, factor, side // factor, factor).mean(axis=(2, 4))


def _same_colours(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether two grids have about the same colours, or one of them has none (a grey copy)."""
    tint_one, tint_two = (_tint(grid.astype(np.float32)) for grid in (one, two))
    gap = np.abs(tint_one - tint_two).mean(axis=(1, 2, 3))
    grey = np.minimum(np.abs(tint_one).max(axis=(1, 2, 3)), np.abs(tint_two).max(axis=(1, 2, 3))) < 4
    return (gap <= _TINT_GAP) | grey


def _tint(grid: np.ndarray) -> np.ndarray:
    """Red and blue relative to green, of the picture brought to the brightness 128."""
    level = np.maximum(grid.mean(axis=(1, 2, 3), keepdims=True), 8)
    return (grid[..., [0, 2]] - grid[..., [1, 1]]) * (128 / level)
