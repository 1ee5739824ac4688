"""Choice of the images of an evaluation: a split, or all, of the run's dataset or another one."""

from collections.abc import Mapping
from typing import Any

from vit_jax import config as settings
from vit_jax import pretrained
from vit_jax.config import Config
from vit_jax.config.rules import validate
from vit_jax.config.schema import SCHEMA
from vit_jax.data import splits
from vit_jax.data.sources import dataset_name, open_source
from vit_jax.runtime.errors import UserError

SPLITS = ("train", "val", "test", "all")
# Settings that describe one dataset only.
_OF_DATASET = (*splits.LAYOUT_KEYS, "relabel", "num_folds", "fold", "val_examples", "test_examples")
_EFFECTIVE = ("sharding.cpu_devices", "train.dtype", "train.eval_batch_size")  # allowed overrides
# Settings that choose among the images of a dataset.
_SUBSETS = ("split_seed", "val_size", "test_size", "num_folds", "fold", *splits.SUBSET_KEYS)


def choose_images(
    run: Config, has_data: bool, overrides: Mapping[str, Any], split: str | None
) -> tuple[Config, str]:
    """Choose the images of an evaluation; return its config and one of SPLITS.

    Args:
      run: the config of the model's run, or the defaults for weights that were trained elsewhere.
      has_data: whether it names the dataset of the model.
      overrides: {"data.key": value}.
      split: one of SPLITS; None: "test". The only split of another dataset is evaluated whole.

    Raises UserError if an override is invalid, has no effect, belongs to the model, or splits the
    images of the run differently; or without `split`, if another dataset has no test split.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"split={split!r} is unknown: use one of {', '.join(SPLITS)}")
    config = settings.with_overrides(run, overrides, "the overrides")
    for key in sorted(overrides):
        if key in (*pretrained.DATA_KEYS, "data.multi_label"):
            raise UserError(f"{key} belongs to the model and cannot be changed")
        if not key.startswith("data.") and key not in _EFFECTIVE:
            raise UserError(f"{key} has no effect on an evaluation")
    if has_data and split != "all":
        _check_splits(run.data, config.data)
    other_data = not {"data.name", "data.dir"}.isdisjoint(overrides)
    own = run.data.name.startswith(("folder", "hf:"))  # data.dir holds one dataset
    one = "data.name" in overrides and own
    held = [key for key in ("val_split", "test_split") if config.data[key] == "hold_out"]
    for key in (*_OF_DATASET, *held, *(["dir"] if one else [])) if other_data else ():
        config.data[key] = overrides.get(f"data.{key}", SCHEMA[f"data.{key}"].default)
    if not config.data.num_folds and (split == "all" or (other_data and split != "train")):
        # Training subsets, for which another dataset may be too small.
        config.data.update(train_examples=0, examples_per_class=0, imbalance_ratio=1.0)
    validate(config)
    if other_data and split != "all":
        source = open_source(config.data, min_classes=1)
        if only := splits.only_split(source):
            if split not in (None, only):
                raise UserError(
                    f"{dataset_name(config.data)} has only the split {source.train_split}: give "
                    "split=all"
                )
            split = "all"
        elif split is None and splits.holds_out_test(source, config.data):
            raise UserError(
                f"{dataset_name(config.data)} has no test split: give split=all for all its "
                "images, or split=test for one held out according to the run's settings"
            )
    for key in _SUBSETS if split == "all" else ():
        if f"data.{key}" in overrides:
            raise UserError(f"data.{key} has no effect on an evaluation of all images")
    return config, split or "test"


def _check_splits(run, data):
    """Raise UserError if images of the run would be split differently: it was trained on some."""
    for key in splits.differing_splits(run, data):
        if key in ("val_split", "test_split") and data[key] != "hold_out":
            continue  # another split that the dataset has itself
        raise UserError(
            f"data.{key}={data[key]} would split the images of the run differently, so that "
            f"training images could be evaluated: omit it, the run has {run[key]}"
        )
