"""Inference with trained models: evaluation, predictions and features."""

import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config as settings
from vit_jax import models, pretrained
from vit_jax.augment import evaluation_crop, preprocess
from vit_jax.config import Config
from vit_jax.config.schema import SCHEMA
from vit_jax.data import StreamingBatches, load_data
from vit_jax.data.checks import match_classes
from vit_jax.data.labels import table_identity, table_path
from vit_jax.data.sources import open_source
from vit_jax.data.splits import all_splits
from vit_jax.evaluation import inputs, samples
from vit_jax.evaluation.choice import choose_images
from vit_jax.evaluation.evaluate import evaluate, make_report
from vit_jax.evaluation.inputs import Images, Path
from vit_jax.evaluation.labels import make_label_report, probabilities
from vit_jax.evaluation.metrics import Sums, reorder_labels
from vit_jax.evaluation.steps import make_eval_step
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError, join_names, single_line
from vit_jax.runtime.files import expand, warn
from vit_jax.runtime.progress import Bar, quiet_libraries
from vit_jax.storage import run_folder

BATCH_SIZE = 32


class Classifier:
    """The selected checkpoint of a run, a converted checkpoint, or the weights of another project.

    Attributes:
      path: of the run, the checkpoint or the file.
      config: that of the run, or the defaults with the settings of the weights.
      class_names: names of the classes; "class 0", ... if the weights have none.
      has_data: whether `config` records the dataset that the model was trained on.
      name: the last two parts of the path of a run ("head/seed_0") or a file
        ("dinov2/model.safetensors"), or the name of the folder of a converted checkpoint.
      thresholds: probability from which each label applies, with several labels per image; else [].
    """

    def __init__(
        self,
        source: Path,
        options: Mapping[str, Any] | None = None,
        needs_head: bool = True,
        class_names: Sequence[str] | None = None,
    ):
        """Read the metadata of the weights; raises UserError.

        Args:
          source: RUN/VARIANT/seed_0, a converted checkpoint, or an .npz or .safetensors file.
          options: settings for `pretrained.convert`, for a weight file.
          needs_head: whether weights without a head are an error.
          class_names: names of the classes, in the order of the head; None: those of the source.
        """
        self.path = path = expand(source)
        given = dict(options or {})
        self._weights = pretrained.convert_with_note(path, given) if path.is_file() else None
        info = self._weights.info if self._weights else pretrained.read_info(path)
        if options and self._weights is None:
            raise UserError(f"{min(options)} has no effect on {path}, which is not a weight file")
        record = run_folder.read_config(path) if info["format"] == "vit_jax" else None
        if record is not None:
            self.config = run_folder.config_of(path, record)
        else:  # trained elsewhere: any length makes the config valid
            overrides = info["settings"] | {"train.steps": 1}
            overrides |= {"data.multi_label": info.get("multi_label", False)}
            self.config = settings.with_overrides(settings.get_config(), overrides, str(path))
        self.has_data = record is not None
        count = info["num_classes"] * self.config.data.multi_label
        self.thresholds = info.get("thresholds") or [0.5] * count
        data = (record or {}).get("data", {})
        # Not those of the weights and the teacher that the run started with.
        self._fingerprint = {k: v for k, v in data.items() if k not in ("weights", "teacher")}
        self._names = info["class_names"] if class_names is None else list(class_names)
        if class_names is not None:
            sizes = {len(class_names), len(set(class_names))}
            if sizes != {info["num_classes"]}:
                raise UserError(
                    f"class_names has {min(sizes)} different names; {path} has "
                    f"{info['num_classes']} classes"
                )
            pretrained.check_order(self._names, info["class_names"], path)
        names = self._names or [f"class {i}" for i in range(info["num_classes"])]
        self.class_names = [single_line(name) for name in names]
        # model.safetensors alone names no model.
        num_parts = 2 if record is not None or path.is_file() else 1
        self.name = "/".join(path.absolute().parts[-num_parts:])
        self._programs: dict[str, Callable] = {}
        if needs_head:
            self.check_head()

    def check_head(self) -> None:
        """Raise UserError if the weights have no head."""
        if not self.class_names:
            raise UserError(f"{self.path} has no head and hence no classes: fine-tune it first")

    @functools.cached_property
    def variables(self) -> dict:
        """The model's variables on the device, read when first used; raises UserError."""
        with quiet_libraries():
            weights = self._weights or pretrained.load(self.path)  # initialises JAX
        pretrained.check_shapes(weights)
        variables = weights.variables
        if not self.class_names:  # the model always has a head: here with no classes
            width, _ = pretrained.shapes(weights.info["settings"], 1)["head/kernel"]
            variables["params"]["head"] = {"kernel": np.zeros((width, 0)), "bias": np.zeros(0)}
        self._weights = None
        return jax.device_put(variables)

    def make_model(self, config: Config = None) -> Any:
        """Build the module of `self.config`, or of a config with other data."""
        config = self.config if config is None else config
        dtype = sharding.dtype_of(config.train.dtype)
        return models.build(config.model, len(self.class_names), dtype)

    def crop_images(self, images: Images) -> np.ndarray:
        """Read images and crop them as the model does, to show them below its maps.

        Give the model the images themselves, which it crops.

        Returns uint8 [n, size, size, channels]; images and errors are those of `read_images`.
        """
        stored = jnp.asarray(self.read_images(images))
        return np.asarray(evaluation_crop(stored, self.config.data))

    def read_images(self, images: Images) -> np.ndarray:
        """Preprocess images as datasets are stored: orient, resize, and crop to a square.

        Args:
          images: paths, PIL images or uint8 arrays [height, width, channels] of any size; one, a
            list, or an array [n, height, width, channels].

        Returns:
          uint8 [n, side, side, channels]; the model may crop the centre, see `crop_images`.

        Raises:
          UserError: a file is not an image, or an array has another dtype or number of channels.
        """
        return np.stack([inputs.read(image, self.config.data) for image in inputs.as_list(images)])

    def apply(
        self,
        name: str,
        function: Callable[..., Any],
        images: Images,
        *arrays: np.ndarray,
        batch_size: int = BATCH_SIZE,
    ) -> Any:
        """Apply a function of the model to images, batch by batch: float32 [n, ...].

        Args:
          name: key of the compiled function, which is jitted once per name and batch size.
          function: (variables, normalised images [b, size, size, channels], *arrays) -> [b, ...],
            or a pytree of such arrays, of which the result has the structure.
          images: as in `read_images`.
          *arrays: [n, ...] each, further arguments of the function.
          batch_size: images per call.
        """
        config, given = self.config, inputs.as_list(images)
        if name not in self._programs:

            def program(variables, images, *arrays):
                return function(variables, preprocess(images, config), *arrays)

            self._programs[name] = jax.jit(program)
        # Padded batches: few compiled programs serve any number of images.
        size, outputs = min(batch_size, 1 << (len(given) - 1).bit_length()), []
        for start in range(0, len(given), size):
            some_images = self.read_images(given[start : start + size])
            count = len(some_images)
            batch = (some_images, *(array[start : start + size] for array in arrays))
            batch = [np.pad(a, [(0, size - count)] + [(0, 0)] * (a.ndim - 1)) for a in batch]
            result = self._programs[name](self.variables, *batch)
            outputs.append(
                jax.tree.map(lambda a, n=count: np.asarray(a.astype(jnp.float32))[:n], result)
            )
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def predict(self, images: Images) -> np.ndarray:
        """Compute class probabilities, float64 [n, classes]; images as in `read_images`.

        With several labels per image, they are independent and do not sum to 1; `labels_of` applies
        the thresholds.
        """
        self.check_head()
        logits = self.apply("logits", self.make_model().apply, images)
        return probabilities(logits, self.config.data.multi_label)

    def labels_of(self, probabilities: np.ndarray) -> list[tuple[str, float]]:
        """List (class, probability) of the labels that apply, of probabilities [classes].

        Those of at least the class's threshold, the most probable first; with one class per image,
        the most probable class.
        """
        best = self.best(probabilities, len(self.class_names))
        if not self.config.data.multi_label:
            return best[:1]
        least = dict(zip(self.class_names, self.thresholds, strict=True))
        return [(name, value) for name, value in best if value >= least[name]]

    def top5(self, images: Images) -> list[list[tuple[str, float]]]:
        """List the five most probable classes of each image: (class, probability), best first."""
        return [self.best(row) for row in self.predict(images)]

    def best(self, probabilities: np.ndarray, count: int = 5) -> list[tuple[str, float]]:
        """List (class, probability) of the largest entries of probabilities [classes]."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(probabilities[i])) for i in order]

    def features(self, images: Images) -> np.ndarray:
        """Compute features (the input of the head), float32 [n, d]; images as in `read_images`."""
        model = self.make_model()

        def features(variables, x):
            return model.apply(variables, x, capture=True)[1]["features"]

        return self.apply("features", features, images)

    def predict_files(
        self, paths: Sequence[pathlib.Path], failed: list[UserError]
    ) -> Iterator[tuple[pathlib.Path, np.ndarray, np.ndarray]]:
        """Yield each path with its image, uint8 [side, side, channels], and probabilities [c].

        A file that is not an image is skipped, and its error is appended to `failed`.
        """
        size = min(BATCH_SIZE, 1 << (len(paths) - 1).bit_length())
        good, images = [], []

        def read(path):
            try:
                return inputs.read(path, self.config.data)
            except UserError as error:
                return error

        with ThreadPoolExecutor(self.config.data.num_threads) as pool:
            for start in range(0, len(paths), size):
                some = paths[start : start + size]
                for path, image in zip(some, pool.map(read, some), strict=True):
                    if isinstance(image, UserError):
                        failed.append(image)
                    else:
                        good.append(path)
                        images.append(image)
                while len(good) >= size or (good and start + size >= len(paths)):
                    batch = [*images[:size], *images[:1] * (size - len(images))]
                    probabilities = self.predict(batch)[: len(images)]
                    yield from zip(good[:size], images[:size], probabilities, strict=True)
                    del good[:size], images[:size]

    def evaluate(
        self,
        data: Path | None = None,
        split: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> dict:
        """Evaluate on a dataset.

        Args:
          data: a folder of class folders or the name of a dataset; None: the dataset of the run.
          split: "train", "val" or "test" as split by the run's settings; or "all" images. None is
            "test", and an error for another dataset without a test split. Of a dataset that is a
            test or validation split only, all images are evaluated.
          overrides: {"data.key": value}, further overrides of data settings. Those that split the
            images of the run differently are refused.

        Returns:
          The report of `evaluate.make_report`: accuracy with its interval, calibration error,
          precision, recall and F1 of every class, and the confusion matrix; that of
          `labels.make_label_report` with several labels per image.

        Raises:
          UserError: the dataset cannot be read or has other classes, or a setting has no effect.
        """
        given = dict(overrides or {})
        if data is not None and not isinstance(data, str | os.PathLike):
            raise UserError(
                f"data is a {type(data).__name__}: give a folder or the name of a dataset; arrays "
                "can be saved as .npy files in class folders"
            )
        if data is not None:
            text = os.fspath(data)
            if isinstance(data, os.PathLike) or os.path.isdir(os.path.expanduser(text)):
                given = {"data.name": "folder", "data.dir": text} | given
            else:
                given = {"data.name": text} | given
        return self.report(*self.evaluation_of(given, split))

    def evaluation_of(self, overrides: Mapping[str, Any], split: str | None) -> tuple[Config, str]:
        """Check the arguments of `evaluate`; return the config and the split for `report`."""
        self.check_head()
        if not self.has_data and not any(key.startswith("data.") for key in overrides):
            raise UserError(f"{self.path} records no dataset: give data.name or data.dir")
        config, split = choose_images(self.config, self.has_data, overrides, split)
        run = self.config.data
        has_other_table = config.data.dir == run.dir and config.data.labels != run.labels
        if has_other_table and split != "all":
            found = table_identity(table_path(config.data))
            if found != self._fingerprint.get("labels", found):
                raise UserError(
                    f"data.labels={config.data.labels} has other contents than the table of the "
                    "run, so that training images could be evaluated: give split=all"
                )
        return config, split

    def report(self, config: Config, split: str) -> dict:
        """Evaluate the config and split from `evaluation_of`; return the report of `evaluate`."""
        found = *self.logits(config, split), self.class_names
        if config.data.multi_label:
            return make_label_report(*found, self.thresholds)
        return make_report(*found)

    def logits(self, config: Config, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Compute logits of the config and split from `evaluation_of`, in the split's order.

        Returns float32 [n, classes], and the labels as classes of the model, int [n], or of several
        per image [n, classes].
        """
        multi_label = config.data.multi_label
        batch_size = config.train.eval_batch_size
        sharding.start(False, config.sharding.cpu_devices, batch_size)
        mesh = sharding.make_mesh()
        if split == "all":
            source = open_source(config.data, min_classes=1)
            names, threads = source.class_names, config.data.num_threads
            splits = [StreamingBatches(s, mesh, threads) for s in all_splits(source, config.data)]
        else:
            data = load_data(config.data, mesh, min_classes=1)
            names, splits = data.class_names, [getattr(data, split)]
            is_same = run_folder.is_same_data(self._fingerprint, data.fingerprint)
            of_images = {"dir", *(k for k in config.data if SCHEMA[f"data.{k}"].resume != "any")}
            if not is_same and all(config.data[k] == self.config.data[k] for k in of_images):
                warn(
                    f"the images or splits are not those of the training of {self.path}: they "
                    "changed, or were read by other rules then, so test images may have been "
                    "training images"
                )
        if not self._names:
            raise UserError(
                f"{self.path} records no class names for its {len(self.class_names)} classes, "
                f"the dataset has {len(names)} ({join_names(names)}): give class_names in the "
                "order of the head"
            )
        numbers = match_classes(names, self.class_names, self.path)
        step = jax.jit(
            make_eval_step(self.make_model(config), config),
            out_shardings=sharding.replicated(mesh),
        )
        batches = itertools.chain(*(one.evaluate(batch_size) for one in splits))
        total = sum(map(len, splits))
        bar = Bar(batches, "evaluating", -(-total // batch_size), disable=None)
        variables, sums = (
            sharding.replicate(mesh, tree) for tree in (self.variables, Sums.empty())
        )
        found = reorder_labels(bar, numbers, len(self.class_names)) if multi_label else bar
        result: Any = evaluate(step, variables, sums, found, keep=True)
        return result.logits, result.labels if multi_label else numbers[result.labels]

    def images_of_classes(self, names: Sequence[str], count: int) -> tuple[np.ndarray, list[str]]:
        """Load a fixed test image of each named class, or of the first `count` that have any.

        Returns uint8 [n, side, side, channels], as stored, and the n names of their classes.
        """
        return samples.images_of_classes(self.config.data, names, count)

    def random_images(
        self, count: int, data=None, split: str = "test"
    ) -> tuple[np.ndarray, list[str]]:
        """Load a fixed random sample of a split's images, as `images_of_classes` does.

        `data` is a `config.data` to use instead of the run's own; `split` is "train", "val" or
        "test". Raises UserError if the split is empty.
        """
        return samples.random_images(data or self.config.data, count, split)

    def test_images(self, indices: Sequence[int], data=None) -> tuple[np.ndarray, list[str]]:
        """Load test images by their index; the result and `data` are those of `random_images`."""
        return samples.test_images(data or self.config.data, indices)
