"""Parameters of a variant, printed before it is trained."""

import math
from collections.abc import Collection
from typing import Any

from clu import parameter_overview

from vit_jax import pretrained
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import single_line
from vit_jax.training.optim import block_depths
from vit_jax.training.setup import Setup, num_params, num_trained

_LABELS = {  # of what is not a block, in the order of the forward pass
    "conv1": "conv1",
    "bn1": "bn1",
    "embedding": "patch embedding",
    "embedding_norm": "norm of patches",
    "cls": "class token",
    "posembed_input": "position embedding",
    "registers": "registers",
    "pre_norm": "norm before the blocks",
    "encoder_norm": "final norm",
    "MAPHead_0": "attention pooling",
    "sequence_pool": "sequence pooling",
    "fc_norm": "final norm",
    "pre_logits": "pre-logits",
    "head": "head",
}


class ParameterTables:
    """Prints the parameters of variants, and the table of each architecture once."""

    def __init__(self):
        self._printed = {}  # {architecture: the first variant with it}

    def print(self, name: str, setup: Setup, state: Any) -> None:
        """Print the parameters of a variant, how `freeze` splits them, and where they come from.

        Args:
          name: of the variant.
          setup: of the variant.
          state: its TrainState, or the shapes of one.
        """
        same = self._printed.setdefault((tuple(setup.shapes.items()), setup.trained), name)
        total, trained = num_params(setup), num_trained(setup)
        if same != name:
            print(f"{name}: the same {total:,} parameters as {same}")
        else:
            print(f"{name}: {total:,} parameters")
            if setup.config.log.parameter_table:
                params = state.params
                print(parameter_overview.get_parameter_overview(params, include_stats=False))
            else:
                print(summarize_parameters(setup.shapes, setup.trained))
        random = " at random values, because init_from is not set" * (setup.weights is None)
        frozen = f"{total - trained:,} frozen{random if trained < total else ''}"
        print(f"freeze={setup.config.freeze}: {trained:,} trained, {frozen}")
        if setup.config.sharding.fsdp:
            mib = sharding.bytes_per_device(state) / 2**20
            print(f"sharding.fsdp: {mib:.2f} MiB of weights and optimizer state per device")
        if setup.weights is not None:
            print(pretrained.table(setup.weights, setup.config.init_from))
        if setup.teacher is not None:
            train, model = setup.config.train, setup.teacher.config.model.name
            loss = f"weight {train.distill_weight:g}, temperature {train.distill_temperature:g}"
            print(single_line(f"train.teacher: {model} of {train.teacher}; {loss}"))


def summarize_parameters(shapes: dict[str, tuple[int, ...]], trained: Collection[str]) -> str:
    """Tabulate parameters per block, from the input to the head; equal blocks share a line.

    Args:
      shapes: {path: shape}; the statistics of BatchNorm are left out.
      trained: paths of the trained parameters.
    """
    depths = block_depths([path for path in shapes if "batch_stats/" not in path])
    blocks = {}  # {name: [parameters, trained parameters]}
    ranks = {name: rank for rank, name in enumerate(_LABELS)}
    names = {path: path.removeprefix("Transformer/").split("/")[0] for path in depths}
    for path in sorted(depths, key=lambda path: (depths[path], ranks.get(names[path], 0))):
        block = blocks.setdefault(names[path], [0, 0])
        size = math.prod(shapes[path])
        block[0] += size
        block[1] += size * (path in trained)
    groups: dict = {}  # {(name without its number, parameters, trained parameters): numbers}
    for name, counts in blocks.items():
        stem, _, number = name.rpartition("_")
        if not number.isdigit():
            stem, number = name, ""
        groups.setdefault((stem, *counts), []).append(number)
    stems = [stem for stem, *_ in groups]
    partly = bool(trained) and not depths.keys() <= set(trained)
    rows = []
    for (stem, size, moving), numbers in groups.items():
        label, notes = _LABELS.get(stem) or stem, []
        if stems.count(stem) > 1:
            label += f" {_ranges(numbers)}"
        if len(numbers) > 1:
            label, notes = f"{len(numbers)} x {label}", [f"{size:,} each"]
        if partly:
            some = "trained" if moving == size else f"{moving:,} trained"
            notes.append(some if moving else "frozen")
        rows.append((label, f"{len(numbers) * size:,}", ", ".join(notes)))
    first, second = (max(len(row[i]) for row in rows) for i in range(2))
    return "\n".join(f"  {a:{first}}  {b:>{second}}  {c}".rstrip() for a, b, c in rows)


def _ranges(numbers):
    """Write increasing numbers, as "0-9" or "0, 2"."""
    if len(numbers) > 1 and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(numbers)
