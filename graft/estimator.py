"""A scikit-learn estimator over images: `fit`, `predict`, `predict_proba`, `score`, `transform`, and a bundle at the end.

    from graft import GraftClassifier
    from sklearn.model_selection import cross_val_score

    model = GraftClassifier(backbone="mobilenetv1_050.coral_in1k", weights="weights/")
    cross_val_score(model, paths, labels, cv=3)
    model.fit(paths, labels).to_bundle("model.graft")

In: images as arrays, tables of flattened arrays, paths, encoded bytes or PIL images (`graft.estimator_input`), and a
label each. Out: a fitted estimator that answers by the very graph a bundle holds: predicting needs ONNX Runtime, no
torch, and the pickled estimator (joblib makes one for every process) carries the whole model.

Everything is learned from what `fit` is given. Costs: `graft.estimator_fitting`. This module imports scikit-learn, so
`graft.GraftClassifier` is loaded on first use.

With `image_shape=(1, -1)` and `value_range="fit"`, which read any table as strips of pixels, all of scikit-learn's own
estimator checks pass (docs/estimator.md says which of them cannot say much about images); what must fail some day belongs
into `FAILED_CHECKS`, with its reason.

Not covered: sample weights, several labels per image, incremental fitting, sparse matrices, NaN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y, check_consistent_length, check_is_fitted, validate_data

from graft.backbones.inputs import INPUTS
from graft.compute import DEVICES, Compute, choose
from graft.deploy.bundle import Bundle
from graft.deploy.opening import BATCH, EMBEDDING, INPUT, PROBABILITIES
from graft.deploy.pack import Check, pack
from graft.errors import SettingsError
from graft.estimator_fitting import WEIGHTINGS, expected_of, fitted
from graft.estimator_input import (
    NO_IMAGES,
    InputError,
    ParameterError,
    Picture,
    as_pictures,
    from_table,
    is_table,
    pixels_of,
    span_of,
)
from graft.estimator_records import Given, Model, Wish
from graft.estimator_training import LOSSES
from graft.images.augmentations import STRENGTHS
from graft.learning.heads import HeadKind
from graft.learning.tune_settings import BatchNorm

FAILED_CHECKS: dict[str, str] = {}

CHOICES = {
    "strategy": ("frozen", "finetuned", "scratch"),
    "input": INPUTS,
    "framing": ("auto", "crop", "squash", "pad"),
    "balance": tuple(LOSSES),
    "head": get_args(HeadKind),
    "batch_norm": get_args(BatchNorm),
    "augment": STRENGTHS,
    "device": DEVICES,
}


WHOLE = {
    **{"size": (8, 2048), "epochs": (1, 100_000), "batch_size": (4, 4096)},
    **{"patience": (1, 100_000), "threads": (1, 1024)},
}
REAL = {"lr": (1e-8, 1.0), "mixup": (0.0, 10.0)}


class GraftClassifier(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator):
    """An image classifier on a pre-trained network, or from scratch.

    Parameters
    ----------
    backbone : the name of a network (`graft models`), or "auto": the embedded one, or with `weights` the best of it and
        up to four of the folder, by leave-one-out log loss on the training images.
    weights : a folder with weights.json; None: `GRAFT_WEIGHTS`, the embedded backbone, local caches, the hub.
    strategy : "frozen" (a head without epochs on fixed features: seconds, no randomness), "finetuned" (tail and head are
        trained), "scratch" (the small CNN from random weights; `backbone`, `tap` and `freeze` have no say).
    freeze : with "finetuned", what stays as it is: "all", "none", a number of first layers (`graft models NAME --layers`)
        or the name of a stage; what the network does not have is refused with "frozen", too, where it has no effect.
    tap : the stage whose output the head reads, by name or number (-1 is the last); "auto": the one with the lowest
        leave-one-out log loss.
    input : "rgb", "gray", "edges", "rgb+edges", "thin" or "rgb+thin"; from scratch "rgb" or "gray".
    framing : how an image becomes a square: "crop" its centre, "squash" it, "pad" it with grey; "auto": crop or squash, by
        leave-one-out log loss (`--fit` of `graft study`; an estimator's `fit` is its method).
    size : the side of the square in pixels, 8 to 2048; None: the network's own.
    balance : how much rare classes count. "none", "root" (inverse square root of the frequency), "full" (inverse
        frequency), "auto": chosen by leave-one-out for "frozen", "root" for training; where there is training
        also the words of `graft train`: "weights" (root), "sampler" (full) and "logit".
    epochs : the most passes over the images, at least 1; None: by the number of images. Training stops earlier where a
        kept-back part (15 %) has not improved for some epochs.
    lr : the learning rate of the network's last stage, over 0 and at most 1 (the head's and the lower stages' follow as by
        default); from scratch of everything; None: the default.
    batch_size : images in a step, 4 to 4096; None: 32.
    patience : epochs without a better log loss before training stops, at least 1; None: the default.
    mixup : the parameter of the beta distribution that pairs of images are mixed with, 0 (none) to 10.
    head : with "finetuned", what is trained behind the tap: "ridge" (linear, begun as a ridge head), "linear" or "mlp" (one
        hidden layer), begun afresh.
    batch_norm : with "finetuned", the statistics of batch normalisation: "frozen", "train" or "reestimate".
    augment : with "finetuned", how strongly the views differ: "none", "light", "medium" or "strong".
    image_shape : (height, width) or (height, width, channels) of the images whose rows a table holds; one may be -1.
    value_range : None: uint8, whole numbers 0..255 or floats 0..1, checked; (lowest, highest): what becomes black and
        white; "fit": the least and the greatest value of the training images.
    random_state : an int, a RandomState or None, for training and its augmentation; "frozen" does not use it.
    device : "auto", "cpu", "cuda" or "mps".
    threads : of the CPU, at least 1; None: all this process may use. With `n_jobs` in a search, give each job its share.

    Attributes
    ----------
    classes_ : the labels, sorted, in the order of the columns of `predict_proba`.
    n_features_in_ : the columns of a table (only where one was given).
    backbone_, tap_, geometry_ : what was taken.
    tried_ : {(backbone, fit, tap): leave-one-out log loss in nats} of the probe; empty from scratch.
    """

    def __init__(
        self,
        backbone: Any = "auto",
        *,
        weights: Any = None,
        strategy: Any = "frozen",
        freeze: Any = "none",
        tap: Any = "auto",
        input: Any = "rgb",
        framing: Any = "auto",
        size: Any = None,
        balance: Any = "auto",
        epochs: Any = None,
        lr: Any = None,
        batch_size: Any = None,
        patience: Any = None,
        mixup: Any = 0.0,
        head: Any = "ridge",
        batch_norm: Any = "frozen",
        augment: Any = "light",
        image_shape: Any = None,
        value_range: Any = None,
        random_state: Any = 0,
        device: Any = "auto",
        threads: Any = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.strategy = strategy
        self.freeze = freeze
        self.tap = tap
        self.input = input
        self.framing = framing
        self.size = size
        self.balance = balance
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.patience = patience
        self.mixup = mixup
        self.head = head
        self.batch_norm = batch_norm
        self.augment = augment
        self.image_shape = image_shape
        self.value_range = value_range
        self.random_state = random_state
        self.device = device
        self.threads = threads

    def fit(self, X: Any, y: Any) -> GraftClassifier:
        """Learn from images and their labels (numbers or texts, at least two different ones)."""
        wish = self._wish()
        pictures, targets = self._given(X, y)
        classes, numbers = np.unique(targets, return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"y holds one class only ({classes[0]!r}). A classifier needs images of at least two."
            )
        span = span_of(pictures, self.value_range)
        model = fitted(Given(pictures, span, numbers.astype(np.int64), len(classes)), wish)
        self.classes_, self._span, self._model = classes, span, model
        self._session = _Session(model.graph, wish.compute.threads)
        self._n_features_out = self._model.features
        self.backbone_, self.tap_ = self._model.backbone, self._model.tap
        self.geometry_, self.tried_ = self._model.geometry, self._model.tried
        self.images_ = len(targets)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each image, `[n]`."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Float32[np.ndarray, "n k"]:
        """Probabilities, calibrated by one temperature, the columns in the order of `classes_`."""
        return self._run(X, PROBABILITIES)

    def transform(self, X: Any) -> Float32[np.ndarray, "n d"]:
        """What the head reads: features of length one (from scratch: of any length)."""
        return self._run(X, EMBEDDING)

    def save(self, folder: str | Path) -> Path:
        """Pack the model as a bundle (`model.graft/`), verified against torch on training images; returns its place.

        Raises BundleError where they disagree, or where `folder` is something else; BackboneError where a frozen
        network's weights are not at hand any more for the check.
        """
        check_is_fitted(self)
        labels = [str(label) for label in self.classes_]
        if len(set(labels)) < len(labels):
            raise InputError(f"The labels {self.classes_.tolist()} are not different any more as texts.")
        model = self._model
        check = Check(model.check, expected_of(model, self.weights))
        pack(
            Path(folder),
            model.graph,
            labels=labels,
            preprocess=model.geometry,
            about=_about(model, self.images_),
            check=check,
        )
        return Path(folder)

    def to_bundle(self, folder: str | Path) -> Bundle:
        """`save`, and open the result."""
        return Bundle(self.save(folder))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float32"]  # features are float32, whatever the images are
        return tags

    def _wish(self) -> Wish:
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise ParameterError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(valid)}.")
        if self.strategy == "frozen" and self.balance not in WEIGHTINGS:
            raise ParameterError(
                f"balance={self.balance!r}: with strategy='frozen' choose one of {', '.join(WEIGHTINGS)}; the others are for "
                "training."
            )
        if self.strategy == "scratch" and self.input not in ("rgb", "gray"):
            raise ParameterError(f"input={self.input!r}: from scratch, choose rgb or gray.")
        for name, (low, high) in WHOLE.items():
            value = getattr(self, name)
            if value is not None and not (_whole(value) and low <= value <= high):
                raise ParameterError(f"{name}={value!r}: give a whole number from {low} to {high}, or None.")
        for name, (lowest, highest) in REAL.items():
            value = getattr(self, name)
            number = isinstance(value, (float, np.floating)) or _whole(value)
            if not (number and lowest <= value <= highest) and not (name == "lr" and value is None):
                raise ParameterError(f"{name}={value!r}: give a number from {lowest:g} to {highest:g}.")
        if not (self.weights is None or isinstance(self.weights, (str, Path))):
            raise ParameterError(f"weights={self.weights!r}: give a folder with weights.json, or None.")
        if not isinstance(self.backbone, str):
            raise ParameterError(f"backbone={self.backbone!r}: give the name of a network, or 'auto'.")
        if isinstance(self.tap, bool) or not isinstance(self.tap, (str, int, np.integer)):
            raise ParameterError(f"tap={self.tap!r}: give the name or the number of a stage, or 'auto'.")
        if _whole(self.random_state) and not 0 <= self.random_state < 2**32:
            raise ParameterError(
                f"random_state={self.random_state}: give a whole number from 0 to 4294967295."
            )
        try:
            compute = choose(self.device)
        except SettingsError:
            raise ParameterError(
                f"device={self.device!r}: this machine has no such device that torch can use; choose 'auto' or 'cpu'."
            ) from None
        if self.threads is not None:
            compute = Compute(compute.device, compute.bf16, int(self.threads))
        return Wish(
            backbone=self.backbone,
            weights=self.weights,
            strategy=self.strategy,
            freeze=str(self.freeze),
            tap=self.tap if isinstance(self.tap, str) else int(self.tap),
            input=self.input,
            fit=self.framing,
            size=None if self.size is None else int(self.size),
            balance=self.balance,
            epochs=None if self.epochs is None else int(self.epochs),
            lr=None if self.lr is None else float(self.lr),
            batch_size=None if self.batch_size is None else int(self.batch_size),
            patience=None if self.patience is None else int(self.patience),
            head=self.head,
            batch_norm=self.batch_norm,
            augment=self.augment,
            mixup=float(self.mixup),
            seed=int(check_random_state(self.random_state).randint(2**20))
            if not isinstance(self.random_state, (int, np.integer))
            else int(self.random_state),
            compute=compute,
        )

    def _given(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """Images and labels for learning."""
        if isinstance(X, (list, tuple)) and not X:
            raise InputError(NO_IMAGES)
        if is_table(X):
            table, targets = validate_data(self, X, y, ensure_min_samples=2)
            _check_labels(targets)
            return from_table(table, self.image_shape), targets
        pictures = as_pictures(X)
        if y is None:
            raise InputError(
                "requires y to be passed, but the target y is None: give a label for every image."
            )
        targets = _check_y(y)
        check_consistent_length(pictures, targets)
        _check_labels(targets)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                delattr(self, name)
        return pictures, targets

    def _run(self, X: Any, output: str) -> Float32[np.ndarray, "n w"]:
        check_is_fitted(self)
        if isinstance(X, (list, tuple)) and not X:
            raise InputError(NO_IMAGES)
        table = is_table(X)
        pictures = (
            from_table(validate_data(self, X, reset=False), self.image_shape) if table else as_pictures(X)
        )
        return self._session.run(output, pictures, self._model, self._span)


def _check_labels(targets: np.ndarray) -> None:
    try:
        check_classification_targets(targets)
    except TypeError:
        raise InputError(
            "y holds labels of kinds that cannot be sorted together, or None. Give numbers or texts, one for every image."
        ) from None


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class _Session:
    """The fitted graph, opened when it is first asked; pickled by its bytes alone."""

    def __init__(self, graph: bytes, threads: int) -> None:
        self.graph, self.threads = graph, threads
        self.opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"graph": self.graph, "threads": self.threads, "opened": None}

    def run(
        self, output: str, pictures: Any, model: Model, span: tuple[float, float] | None
    ) -> Float32[np.ndarray, "n w"]:
        """An output for all pictures, a bundle's batch at a time."""
        if self.opened is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.log_severity_level = 3
            self.opened = onnxruntime.InferenceSession(
                self.graph, options, providers=["CPUExecutionProvider"]
            )
        parts = []
        for begin in range(0, len(pictures), BATCH):
            some: list[Picture] = list(pictures[begin : begin + BATCH])
            pixels = pixels_of(some, model.geometry, span, threads=self.threads)
            parts.append(self.opened.run([output], {INPUT: pixels})[0])
        return np.concatenate(parts)


def _about(model: Model, images: int) -> dict[str, Any]:
    """What the bundle tells of itself. An estimator measures nothing, so there are no scores in it."""
    return {
        "strategy": model.strategy,
        "backbone": model.backbone,
        "tap": model.tap,
        "weights": model.weights,
        "headline": "Not measured: the model was fitted on all images that were given. `graft evaluate` measures it.",
        "reason": "Fitted by graft.GraftClassifier.",
        "metrics": {},
        "per_class": [],
        "data": {
            "name": "images given to an estimator",
            "images": images,
            "development": images,
            "excluded": 0,
            "fingerprint": "none",
        },
    }
