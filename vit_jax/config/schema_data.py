"""Settings of the data and their augmentation."""

import math

from vit_jax.config.setting import (
    INTERPOLATIONS,
    KINDS,
    POLICY,
    RANDAUGMENT,
    WHEN,
    Setting,
    free,
    of_kind,
    positive,
)

DATA = dict(
    name=Setting(
        "cifar10",
        "dataset: a TFDS name such as eurosat/rgb, hf:NAME_OR_FOLDER of a Hugging Face dataset, "
        "folder or digits",
    ),
    dir=free(
        "",
        "image folder, folder of Hugging Face datasets, or TFDS data directory (empty: "
        "TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    ),
    labels=Setting(
        "",
        "CSV or TSV file of file names and labels of an image folder; a relative path starts at "
        "the current directory or at data.dir; empty: classes are folders",
        resume="moved",
    ),
    label_pattern=Setting(
        "",
        "regular expression whose group, the one named label or the first other than split, is "
        "the label in the file names of an image folder; a group named split is the split; empty: "
        "classes are folders",
    ),
    image_column=Setting(
        "",
        "column of the images in a Hugging Face dataset, or of file names; empty: found by name",
    ),
    label_column=Setting(
        "",
        "column of the labels in a Hugging Face dataset or in data.labels; empty: found by name",
    ),
    split_column=Setting(
        "",
        "column of the splits in data.labels; empty: found by name; none: splits are ignored",
    ),
    train_split=Setting("train", "training split: TFDS split string or name of a subfolder"),
    val_split=Setting(
        "auto",
        "validation split; auto: the dataset's own, else hold_out: held out from train",
    ),
    test_split=Setting(
        "auto", "test split; auto: the dataset's own, else hold_out: held out from train"
    ),
    image_key=Setting("image", "name of the TFDS feature with the images"),
    label_key=Setting("label", "name of the TFDS feature with the classes"),
    multi_label=Setting(
        False,
        "several labels per image: sigmoid loss, and mAP instead of accuracy; of data.labels, a "
        "Hugging Face column of lists, or a TFDS feature Sequence(ClassLabel)",
    ),
    label_separator=Setting(";", "with multi_label, what is between labels in data.labels"),
    val_size=positive(0.1, "held-out validation split: fraction or number of images"),
    test_size=positive(0.2, "held-out test split: fraction or number of images"),
    split_seed=Setting(0, "random seed of held-out splits and subsets", high=math.inf),
    train_examples=Setting(0, "size of a stratified subset of the training split; 0: all"),
    val_examples=Setting(0, "size of a stratified subset of the validation split; 0: all"),
    test_examples=Setting(0, "size of a stratified subset of the test split; 0: all"),
    examples_per_class=Setting(0, "training examples per class in a balanced subset; 0: all"),
    num_folds=Setting(
        0,
        "cross-validation: number of stratified folds of the training split, one of which is the "
        "test split; 0: off",
        high=1000,
    ),
    fold=Setting(0, "cross-validation: fold that is the test split, counted from 0", high=999),
    relabel=Setting(
        "",
        "CSV file of corrected labels, which `vit-jax suspects` writes and you edit; empty: none",
        resume="moved",
    ),
    imbalance_ratio=Setting(
        1.0,
        "training subset whose class sizes fall exponentially from the first class to the last, by "
        "this ratio; 1: all examples",
        low=1,
        high=10**6,
    ),
    image_size=Setting(32, "model input side in pixels; 0: that of init_from", high=10_000),
    stored_size=Setting(
        0,
        "image side in pixels until the device resizes it to image_size; 0: image_size, or with "
        "another resize_mode than fit, image_size / eval_crop",
        high=10_000,
    ),
    resize_mode=Setting(
        "fit",
        "resizing of images; fit: of the central square; shorter_side: of the shorter side, then "
        "a centre crop; squash: to a square, without a crop",
        ("fit", "shorter_side", "squash"),
    ),
    interpolation=Setting(
        "bicubic",
        "interpolation of images resized to stored_size; the device's own resizing is bilinear",
        INTERPOLATIONS,
    ),
    scaled_decoding=Setting(
        False,
        "decode a JPEG file at 1/2, 1/4 or 1/8 of its size if it is then still as large as the "
        "stored image: faster, with slightly different pixels",
    ),
    eval_crop=positive(1.0, "side of the centre crop in evaluation, as a fraction", high=1),
    channels=Setting(
        3,
        "3: RGB, 1: greyscale; images are converted; any other number: bands of a TIFF file, of "
        "its pages or of a .npy array",
        low=1,
        high=1000,
    ),
    rgb_bands=free(
        (),
        "with other channels than 1 or 3: bands that figures show as red, green and blue, counted "
        "from 1; (): the first three",
        low=1,
        high=1000,
    ),
    background=Setting((255,), "grey level or RGB behind transparent pixels", high=255),
    level_range=Setting(
        (),
        "levels that become black and white, of images with more than 8 bits per channel; of "
        "bands, two levels for all or for each; (): decided by a sample of training images",
        low=-math.inf,
        high=math.inf,
    ),
    max_pixels=free(178_956_970, "largest image that is read, in pixels", low=1),
    mean=Setting((0.5,), "mean of pixels in [0, 1]; one value, or one per channel", high=1),
    std=Setting((0.5,), "std of pixels in [0, 1]; one value, or one per channel", low=1e-3, high=1),
    device_resident=free("auto", "decode the dataset once and keep it on the device", WHEN),
    device_resident_max_gib=free(
        2.0,
        "largest dataset, in GiB of uint8 pixels, that data.device_resident=auto accepts, and most "
        "GiB of cached features",
    ),
    skip_corrupt=Setting(
        False, "skip and count the unreadable images of a folder or Hugging Face dataset"
    ),
    num_threads=free(8, "threads that read and decode images", low=1, high=1000),
    num_workers=free(
        0,
        "worker processes that read and decode streamed training images, one thread each, instead "
        "of data.num_threads threads; 0: none",
        high=1000,
    ),
    cache_decoded=free(True, "cache decoded images in ~/.cache/vit_jax"),
    download=free(True, "download and prepare a missing dataset, if known"),
)

AUGMENT = dict(
    kind=Setting(
        "baseline",
        "recipe; none: normalisation only; baseline: random crop and flip; the others: baseline "
        "and that policy; strong: AutoAugment, random erasing, mixup and CutMix",
        KINDS,
    ),
    crop_padding=Setting(4, "padding in pixels on each side before the random crop"),
    crop_min_area=Setting(
        0.0, "smallest area fraction of a random resized crop; 0: padded crop", high=1
    ),
    flip=Setting(True, "mirror images horizontally with probability 0.5"),
    fill=Setting(0, "grey level of padding and of areas uncovered by a transform", high=255),
    policy=Setting("cifar10", "AutoAugment policy", ("cifar10", "imagenet"), applies=POLICY),
    num_ops=Setting(2, "RandAugment operations per image", low=1, high=100, applies=RANDAUGMENT),
    magnitude=Setting(9, "RandAugment magnitude", high=30, applies=RANDAUGMENT),
    rotation_degrees=Setting(0.0, "largest random rotation in degrees; 0: off", high=180),
    brightness=Setting(0.0, "brightness jitter: factor in [1 - this, 1 + this]; 0: off", high=1),
    contrast=Setting(0.0, "contrast jitter: factor in [1 - this, 1 + this]; 0: off", high=1),
    saturation=Setting(0.0, "saturation jitter: factor in [1 - this, 1 + this]; 0: off", high=1),
    cutout_length=Setting(
        0, "side of the cutout square in pixels; 0: half of image_size for kind=cutout, else off"
    ),
    erasing_rate=of_kind("erasing_rate", "fraction of images with random erasing", high=1),
    mixup_alpha=of_kind("mixup_alpha", "mixup: weights from Beta(alpha, alpha)", high=1000),
    cutmix_alpha=of_kind(
        "cutmix_alpha", "CutMix: area fractions from Beta(alpha, alpha)", high=1000
    ),
    cutmix_rate=Setting(0.5, "probability of CutMix instead of mixup where both are on", high=1),
    mix_rate=Setting(0.5, "fraction of images that mixup or CutMix changes", high=1),
)
