"""Kind of a schema entry, and the partial entries that many settings share."""

import dataclasses
import functools

COUNTABLE = 2**31 - 2  # counters on the device are int32
SMALLEST = (
    1e-30  # for "above 0": float32 underflows near 1e-38, and products of small values earlier
)
BELOW_1 = 1 - 1e-6  # distinct from 1 in float32


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a config.

    Attributes:
      default: its type is the setting's type.
      help: its meaning, without reference to other entries.
      choices: allowed values; empty for any.
      low: smallest allowed number, of a tuple for each entry.
      high: largest allowed number, of a tuple for each entry.
      applies: (another setting, its values with which this one has an effect); None: always.
      resume: what a resumed run may change it to: "same", "any" (it changes no result), "longer"
        (a finished run may be lengthened), or "moved" (another path of the same contents).
    """

    default: bool | int | float | str | tuple
    help: str
    choices: tuple = ()
    low: float = 0
    high: float = COUNTABLE
    applies: tuple[str, tuple] | None = None
    resume: str = "same"


KINDS = ("none", "baseline", "cutout", "autoaugment", "randaugment", "trivialaugment", "strong")
POSITIONS = (
    *("none", "learned_1d", "learned_2d", "sinusoidal", "sincos_2d", "rope_2d", "relative_bias"),
)
WHEN = ("auto", "always", "never")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
POLICY = ("augment.kind", ("autoaugment", "strong"))
RANDAUGMENT = ("augment.kind", ("randaugment",))
DECAY = ("optim.schedule", ("cosine", "linear", "reduce_on_plateau"))
STEP = ("optim.schedule", ("step",))
DROP = ("optim.schedule", ("step", "reduce_on_plateau"))

resnet = functools.partial(Setting, applies=("model.name", ("resnet18",)))
# With muon, for the parameters that AdamW updates.
adam = functools.partial(
    Setting, applies=("optim.name", ("adam", "adamw", "muon", "schedule_free_adamw"))
)
muon = functools.partial(Setting, applies=("optim.name", ("muon",)))
lora = functools.partial(Setting, applies=("freeze", ("lora",)))
lion = functools.partial(Setting, applies=("optim.name", ("lion",)))
sgd = functools.partial(Setting, applies=("optim.name", ("sgd",)))
plateau = functools.partial(Setting, applies=("optim.schedule", ("reduce_on_plateau",)))
vit = functools.partial(Setting, applies=("model.name", ("vit",)))
positive = functools.partial(Setting, low=SMALLEST)
below_1 = functools.partial(Setting, high=BELOW_1)
free = functools.partial(Setting, resume="any")


# What augment.kind=strong adds where a setting is -1.
STRONG = {"erasing_rate": 0.25, "mixup_alpha": 1.0, "cutmix_alpha": 1.0}


def of_kind(key: str, text: str, high: float) -> Setting:
    """Make the setting `augment.key`, whose default of -1 leaves the value to `augment.kind`."""
    text = f"{text}; 0: off; -1: {STRONG[key]:g} for kind=strong, else off"
    return Setting(-1.0, text, low=-1, high=high)
