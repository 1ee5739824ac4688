"""A trained model ready for use: to evaluate it on a set, or to classify images."""

import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from vit_jax import config as settings
from vit_jax import models, pretrained
from vit_jax.augment import preprocess
from vit_jax.config import Config
from vit_jax.data import StreamingBatches, load_data
from vit_jax.data.images import read_image, stored_size
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits, one_of_each, undivided
from vit_jax.evaluation.evaluate import evaluate, make_report, softmax
from vit_jax.evaluation.steps import make_eval_step
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError, single_line
from vit_jax.runtime.progress import Bar
from vit_jax.runtime.sharding import dtype_of
from vit_jax.storage import run_folder


class Classifier:
    """The selected checkpoint of a run, or a converted checkpoint with a head.

    Attributes:
      config: of the run, or the defaults with the settings of the weights.
      class_names: of the classes.
      has_data: whether `config` says which data the model was trained on.
      name: of the run, such as "head/seed_0", or of the checkpoint.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads what the weights are; raises UserError if they are damaged, or have no head."""
        info = pretrained.read_info(folder)
        if not info["num_classes"]:
            raise UserError(f"{folder} has no head, so it knows no classes: fine-tune it first")
        record = run_folder.read_config(folder) if info["format"] == "vit_jax" else None
        if record is not None:
            self.config = run_folder.config_of(folder, record)
        else:  # trained elsewhere: any length makes the config a valid one
            kept = info["settings"] | {"train.steps": 1}
            self.config = settings.with_overrides(settings.get_config(), kept, str(folder))
        self.has_data = record is not None
        self._names = info["class_names"]
        names = self._names or [f"class {i}" for i in range(info["num_classes"])]
        self.class_names = [single_line(name) for name in names]
        self._folder = folder
        self.name = "/".join(folder.absolute().parts[-2:]) if record else folder.absolute().name

    @functools.cached_property
    def variables(self) -> dict:
        """What the model is applied with; reads the weights, later than the rest.

        Raises UserError if they are damaged, or not those of the model.
        """
        weights = pretrained.load(self._folder)  # starts the devices
        pretrained.check_whole(weights)
        return weights.variables

    def make_model(
        self, config: Config | None = None
    ) -> models.VisionTransformer | models.ResNet18:
        """Returns the module, of `self.config` or of one with other data."""
        config = config or self.config
        assert config is not None
        return models.build(config.model, len(self.class_names), dtype_of(config.train.dtype))

    def report(self, config: Config, part: str) -> dict:
        """Evaluates a part of a data set.

        Args:
          config: `self.config`, its data perhaps changed.
          part: "train", "val" or "test"; or "all" images, with none carved or left out.

        Returns:
          The report of `evaluate.make_report`.

        Raises:
          UserError: the data cannot be read, or have other classes.
        """
        batch_size = config.train.eval_batch_size
        sharding.start(False, config.sharding.cpu_devices, batch_size)
        mesh = sharding.make_mesh()
        if part == "all":
            source = open_source(config.data)
            names, examples = source.class_names, undivided(source, config.data)
            parts = [StreamingBatches(one, mesh, config.data.num_threads) for one in examples]
        else:
            data = load_data(config.data, mesh)
            names, parts = data.class_names, [getattr(data, part)]
        self._check_classes(names)
        step = jax.jit(
            make_eval_step(self.make_model(config), config),
            out_shardings=sharding.replicated(mesh),
        )
        batches = itertools.chain(*(one.evaluate(batch_size) for one in parts))
        total = sum(map(len, parts))
        bar = Bar(batches, "evaluating", -(-total // batch_size), disable=None)
        variables = sharding.put_replicated(mesh, self.variables)
        result = evaluate(step, variables, bar, keep=True)
        assert result is not None and result.logits is not None and result.labels is not None
        return make_report(result.logits, result.labels, names)

    def _check_classes(self, found):
        if self._names is None and len(found) == len(self.class_names):
            return  # names that are not known cannot differ
        if found != self.class_names:
            differing = sorted(set(found) ^ set(self.class_names)) or ["their order"]
            raise UserError(
                f"the data have {len(found)} classes, {self._folder} has "
                f"{len(self.class_names)}, and they differ in {', '.join(differing[:5])}"
            )

    def images_of_classes(self, names: Sequence[str], count: int) -> tuple[np.ndarray, list[str]]:
        """Returns a fixed test image each of some classes, and the classes' names.

        Args:
          names: of the classes; empty: the first `count`.
          count: of the classes, if none are named.

        Returns:
          uint8 [n, side, side, channels], as stored, and n names.

        Raises:
          UserError: a class is unknown, or the data cannot be read.
        """
        config = self.config
        splits = make_splits(open_source(config.data), config.data)
        for name in names:
            if name not in splits.class_names:
                raise UserError(f"{name!r} is no class: there are {', '.join(splits.class_names)}")
        names = list(names) or splits.class_names[:count]
        labels = splits.test.labels
        numbers = [n for name in names if (n := splits.class_names.index(name)) in labels]
        if not numbers:
            raise UserError(f"there is no test image of {', '.join(names)}")
        chosen = one_of_each(labels, numbers, config.data.split_seed)
        images, found = splits.test.take(chosen).decode_all(config.data.num_threads)
        return images, [splits.class_names[label] for label in found]

    def random_images(self, count: int, data=None) -> tuple[np.ndarray, list[str]]:
        """Returns as `images_of_classes` test images chosen at random, always the same.

        `data` is a `config.data` to take instead of the run's own.
        """
        data = data or self.config.data
        splits = make_splits(open_source(data), data)
        order = np.random.default_rng(data.split_seed).permutation(len(splits.test.labels))
        images, found = splits.test.take(order[:count]).decode_all(data.num_threads)
        return images, [splits.class_names[label] for label in found]

    def read_images(self, paths: Sequence[pathlib.Path]) -> np.ndarray:
        """Returns files as uint8 [n, side, side, channels]; raises UserError if one is no image."""
        size, channels = stored_size(self.config.data), self.config.data.channels
        return np.stack([read_image(path, size, channels) for path in paths])

    def predict(
        self, paths: Sequence[pathlib.Path], failed: list[UserError], batch_size: int = 32
    ) -> Iterator[tuple[pathlib.Path, np.ndarray, np.ndarray]]:
        """Yields each path with its image, uint8 [side, side, channels], and probabilities [c].

        A file that is no image is left out, and what there is to tell of it added to `failed`.
        """
        config, model, variables = self.config, self.make_model(), self.variables

        @jax.jit
        def logits_of(variables, images):
            return model.apply(variables, preprocess(images, config))

        for start in range(0, len(paths), batch_size):
            some, images = [], []
            for path in paths[start : start + batch_size]:
                try:
                    images.append(self.read_images([path])[0])
                    some.append(path)
                except UserError as error:
                    failed.append(error)
            if not some:
                continue
            # A whole batch, even if the images are fewer: one compiled program serves all.
            rows = min(batch_size, len(paths))
            padded = np.pad(images, ((0, rows - len(some)), (0, 0), (0, 0), (0, 0)))
            found = softmax(np.asarray(logits_of(variables, padded)))[: len(some)]
            yield from zip(some, images, found, strict=True)
