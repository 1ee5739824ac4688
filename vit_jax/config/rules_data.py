"""Rules across the settings of the data and their augmentation."""

import re

from vit_jax.config.schema import SCHEMA
from vit_jax.config.setting import STRONG
from vit_jax.config.settings import Config, resized_side
from vit_jax.runtime.errors import UserError, truncate_repr


def validate_data(config: Config) -> None:
    """Raise UserError for the first invalid setting of the data."""
    data = config.data
    _validate_source(data)
    _validate_labels(data)
    if not data.image_size:
        problem = "does not define it" if config.init_from else "is not set: name the weights"
        raise UserError(f"data.image_size=0 takes the image size of init_from, which {problem}")
    for key in ("mean", "std"):
        if len(data[key]) not in (1, data.channels):
            raise UserError(
                f"data.{key}={tuple(data[key])} has {len(data[key])} values for "
                f"{data.channels} channels: give one, or one per channel"
            )
    if data.resize_mode != "fit" and resized_side(data) > 10_000:
        raise UserError(
            f"data.eval_crop={data.eval_crop} of data.image_size={data.image_size} needs images "
            f"of {resized_side(data)} pixels, more than 10,000"
        )
    if not data.train_split:
        raise UserError("data.train_split is empty: give the name of a split")
    if len(data.background) not in (1, 3):
        raise UserError(f"data.background={data.background} must be a grey level, or RGB")
    _validate_levels(data)
    _validate_bands(config)
    for key in ("val_size", "test_size"):
        if data[key] > 1 and data[key] != int(data[key]):
            raise UserError(f"data.{key}={data[key]} must be a fraction below 1, or an integer")
    if config.keep_head and not config.init_from:
        raise UserError("keep_head=True has no effect without init_from")
    _validate_folds(data)
    if data.multi_label:
        _validate_multi_label(config)
    elif data.label_separator != SCHEMA["data.label_separator"].default:
        raise UserError(
            f"data.label_separator={data.label_separator!r} has no effect with "
            "data.multi_label=False"
        )
    if data.train_examples and data.examples_per_class:
        raise UserError("give data.train_examples or data.examples_per_class, not both")
    if data.imbalance_ratio > 1 and data.examples_per_class:
        raise UserError(
            f"data.imbalance_ratio={data.imbalance_ratio} contradicts data.examples_per_class="
            f"{data.examples_per_class}, which balances the classes: give one"
        )


def _validate_source(data):
    if not data.name:
        raise UserError("data.name is empty: give a TFDS name, hf:NAME, folder or digits")
    if data.name == "folder" and not data.dir:
        raise UserError("data.name=folder needs data.dir, the folder of images")
    if data.name == "digits" and data.dir:
        raise UserError(
            f"data.dir={truncate_repr(data.dir)} has no effect with data.name=digits: for a folder "
            "of images, set data.name=folder"
        )


def _validate_folds(data):
    if data.num_folds == 1:
        raise UserError("data.num_folds=1 leaves nothing to train on: give at least 2, or 0")
    if data.num_folds and data.test_examples:
        raise UserError("data.test_examples has no effect with data.num_folds: remove it")
    if data.fold >= max(1, data.num_folds):
        raise UserError(
            f"data.fold={data.fold} must be below data.num_folds={data.num_folds}"
            if data.num_folds
            else f"data.fold={data.fold} has no effect without data.num_folds"
        )


def _validate_levels(data):
    levels = tuple(data.level_range)
    pairs = (1,) if data.channels in (1, 3) else (1, data.channels)
    rising = all(low < high for low, high in zip(levels[::2], levels[1::2], strict=False))
    if levels and (len(levels) not in [2 * n for n in pairs] or not rising):
        each = f", two for each of {data.channels} channels" * (len(pairs) > 1)
        raise UserError(f"data.level_range={levels} must be two rising levels{each}, or ()")


def _validate_bands(config):
    """Raise UserError for settings that images of bands, neither RGB nor grey, contradict."""
    data, augment = config.data, config.augment
    bands, needs = tuple(data.rgb_bands), "needs RGB or grey images, not data.channels="
    if data.channels in (1, 3):
        if bands:
            raise UserError(
                f"data.rgb_bands={bands} has no effect with data.channels={data.channels}"
            )
        return
    numbers = range(1, data.channels + 1)
    if bands and (len(bands) != 3 or any(band not in numbers for band in bands)):
        raise UserError(
            f"data.rgb_bands={bands} must be three of the bands 1 to {data.channels}, or ()"
        )
    if data.name == "digits":
        raise UserError(f"data.name=digits {needs}{data.channels}")
    if augment.kind in ("autoaugment", "randaugment", "trivialaugment", "strong"):
        raise UserError(f"augment.kind={augment.kind} {needs}{data.channels}: use baseline")
    for key in ("contrast", "saturation"):
        if augment[key]:
            raise UserError(f"augment.{key}={augment[key]} {needs}{data.channels}")


def _validate_multi_label(config):
    data = config.data
    if data.name == "digits" or (data.name == "folder" and not data.labels):
        hint = ": set data.labels, a table of them" if data.name == "folder" else ""
        raise UserError(
            f"data.multi_label=True needs several labels per image, but data.name={data.name} has "
            f"one class per image{hint}"
        )
    if not data.label_separator:
        raise UserError("data.label_separator is empty: give what is between labels, such as ;")
    if data.examples_per_class:
        raise UserError(
            f"data.examples_per_class={data.examples_per_class} cannot be combined with "
            "data.multi_label=True, whose images have several classes: use data.train_examples"
        )
    one_class = ("data.imbalance_ratio", "data.num_folds", "data.relabel")
    one_class += ("train.class_weights", "train.focal_gamma", "train.sampling")
    for key in one_class:
        section, name = key.split(".")
        if config[section][name] != SCHEMA[key].default:
            raise UserError(
                f"{key}={config[section][name]} needs one class per image, not "
                "data.multi_label=True: remove it"
            )
    if config.train.teacher:
        raise UserError(
            f"train.teacher={config.train.teacher} cannot be combined with data.multi_label=True: "
            "the distillation loss compares one distribution over the classes"
        )


def _validate_labels(data):
    is_hub = data.name.startswith("hf:")
    if data.name == "hf:":
        raise UserError("data.name=hf: needs a name or folder, as hf:mnist")
    for key in ("labels", "label_pattern"):
        if data[key] and data.name != "folder":
            raise UserError(
                f"data.{key}={truncate_repr(data[key])} has no effect with data.name={data.name}: "
                "it labels the images of data.name=folder"
            )
    if data.labels and data.label_pattern:
        raise UserError("give data.labels or data.label_pattern, not both")
    if data.label_pattern:
        parse_pattern(data.label_pattern)
    if data.name in ("folder", "digits") or is_hub:
        for key in ("image_key", "label_key"):
            if data[key] != SCHEMA[f"data.{key}"].default:
                hint = f"; set data.{key.replace('key', 'column')}" if is_hub else ""
                raise UserError(
                    f"data.{key}={data[key]} has no effect with data.name={data.name}: it names a "
                    f"feature of a TFDS dataset{hint}"
                )
    for key in ("image_column", "label_column", "split_column"):
        if data[key] and not data.labels and (key == "split_column" or not is_hub):
            hint = "" if key == "split_column" else " or a Hugging Face dataset (data.name=hf:NAME)"
            raise UserError(f"data.{key}={data[key]} has no effect without data.labels{hint}")


def parse_pattern(text: str) -> re.Pattern:
    """Compile `config.data.label_pattern`.

    The label is its group "label", else the first one that is not "split".

    Raises:
      UserError: it is not a regular expression, or has no such group.
    """
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"data.label_pattern={truncate_repr(text)} is not a regular expression: {error}"
        ) from None
    if not pattern.groups - ("split" in pattern.groupindex):
        raise UserError(
            f"data.label_pattern={truncate_repr(text)} has no group for the label: "
            "put the part that is the label in parentheses"
        )
    return pattern


def validate_augment(config: Config) -> None:
    """Raise UserError for the first invalid setting of the augmentation."""
    augment, size = config.augment, config.data.image_size
    extras = ("rotation_degrees", "brightness", "contrast", "saturation", "cutout_length")
    extras += ("crop_min_area", *STRONG)
    for key in STRONG:
        if -1 < augment[key] < 0:
            raise UserError(f"augment.{key}={augment[key]} must be -1 or at least 0")
    given = [key for key in extras if augment[key] > 0]
    if augment.kind == "none" and given:
        raise UserError(
            f"augment.kind=none contradicts augment.{given[0]}={augment[given[0]]}: use baseline, "
            "with augment.crop_padding=0 and augment.flip=False if need be"
        )
    if augment.kind != "none" and augment.crop_padding >= size and not augment.crop_min_area:
        raise UserError(
            f"augment.crop_padding={augment.crop_padding} must be smaller than "
            f"data.image_size={size}"
        )
    _validate_mixing(augment)
    if augment.saturation and config.data.channels == 1:
        raise UserError(f"augment.saturation={augment.saturation} needs data.channels=3 (colours)")
    if augment.cutout_length > 2 * size:
        raise UserError(
            f"augment.cutout_length={augment.cutout_length} is above {2 * size}, twice the image"
        )


def _validate_mixing(augment):
    alphas = augment.mixup_alpha, augment.cutmix_alpha
    for key, needs, has_effect in (
        ("mix_rate", "augment.mixup_alpha or augment.cutmix_alpha", any(alphas)),
        ("cutmix_rate", "both augment.mixup_alpha and augment.cutmix_alpha", all(alphas)),
    ):
        if augment[key] != SCHEMA[f"augment.{key}"].default and not has_effect:
            raise UserError(f"augment.{key}={augment[key]} has no effect without {needs}")
