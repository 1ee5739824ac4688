"""`Model`: a finished model that predicts, evaluates, and explains itself."""

import collections
import copy
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax import pretrained
from vit_jax.evaluation.classifier import Classifier
from vit_jax.evaluation.inputs import Images, Path, as_list
from vit_jax.explanation import gradients, methods
from vit_jax.explanation.methods import Method, token_layout
from vit_jax.runtime.errors import UserError, join_names

Target = int | str | Sequence[int | str] | np.ndarray
_BATCH_SIZE = 8  # attention weights are large: 22 MB per image in a B/16 at 224 pixels


def name_apart(models: Sequence["Model"]) -> None:
    """Lengthen the names that several models have, by more parts of their paths."""
    paths = [pathlib.Path(os.path.abspath(model.path)).parts for model in models]
    alike = collections.defaultdict(set)
    for model, path in zip(models, paths, strict=True):
        alike[model.name].add(path)
    for model, path in zip(models, paths, strict=True):
        others, count = alike[model.name], 2
        while len(others) > len({other[-count:] for other in others}):
            count += 1
        if len(others) > 1:
            model.name = "/".join(path[-count:])


class Model(Classifier):
    """A `Classifier` with its attention and explanations.

    The arguments are those of `Classifier`.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; (0, 0) for a ResNet."""
        return token_layout(self.config)[0]

    @property
    def relevance_grid(self) -> tuple[int, int]:
        """Rows and columns of explanations: patches, or equal parts of the image for a ResNet."""
        return methods.relevance_grid(self.config)

    def __repr__(self) -> str:
        num_classes = len(self.class_names)
        return f"<vit_jax.Model {self.name}: {self.config.model.name}, {num_classes} classes>"

    def attention(self, images: Images) -> np.ndarray:
        """Compute the attention weights of images as in `read_images`.

        Returns:
          float32 [n, depth, heads, tokens, tokens]; rows are queries. The class token, where there
          is one, comes first, then registers, then the patches in reading order. Of differential
          attention, the difference of the two maps, with negative weights too.
        """
        self._check_attention()
        model = self.make_model()

        def attention(variables, inputs):
            inside = model.apply(variables, inputs, capture=True)[1]
            return jnp.stack(inside["attention"], 1)

        return self.apply("attention", attention, images, batch_size=_BATCH_SIZE)

    @property
    def methods(self) -> list[str]:
        """The methods of `explain` that are defined for this model, the default first."""
        return [
            key
            for key, method in methods.METHODS.items()
            if not methods.refusal(self.config, key) and (self.class_names or not method.of_class)
        ]

    def with_variables(self, variables: dict) -> "Model":
        """Make the model with other variables of the same shapes; compiled programs are shared."""
        other = copy.copy(self)
        other.__dict__["variables"] = variables
        return other

    def explain(
        self,
        images: Images,
        method: str = "gradient_rollout",
        target: Target | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Compute how much each patch contributes to the prediction.

        Args:
          images: as in `read_images`.
          method: "gradient_rollout", "chefer", "grad_cam", "input_x_gradient",
            "integrated_gradients" or "rise": evidence for the target class; "rollout" or
            "last_layer" (the mean of the last layer's heads): attention, for no class.
          target: index or name of a class, one for all images or one for each; None: the predicted
            class of each.
          **options: "fusion" of the heads ("mean", "max" or "min") of rollout; "discard" (0), the
            fraction of a layer's weights that counts as 0, of rollout and gradient_rollout; "steps"
            (32) and "baseline" ("mean", the image's mean colour, or "black") of
            integrated_gradients; "masks" (512) and "seed" (0) of rise.

        Returns:
          float32 [n, rows, columns], not normalised; of input_x_gradient, integrated_gradients and
          rise with negative entries. For a ResNet18 rows and columns of equal parts of the image.

        Raises:
          UserError: an image, method, target or option cannot be used, or the model has no
            attention, which the method needs.
        """
        chosen, options = self.check_method(method, target, **options)
        module, config = self.make_model(), self.config

        def relevance(variables, inputs, classes=None):
            return chosen.compute(module, config, variables, inputs, classes, **options)

        return self._apply_method(method, relevance, images, target, options)

    def residual(self, images: Images, target: Target | None = None, **options: Any) -> np.ndarray:
        """Compute the residual of integrated gradients, float32 [n].

        It is the fraction of the logit's difference from the baseline that the sum of the map
        misses: the error of the integral over `steps`. Arguments are those of `explain`.
        """
        method = "integrated_gradients"
        maps = self.explain(images, method, target, **options)
        _, options = self.check_method(method, **options)
        module, config = self.make_model(), self.config

        def residual(variables, inputs, maps, classes=None):
            baseline = methods.baseline_of(options["baseline"], inputs, config)
            logits_fn = functools.partial(module.apply, variables)
            return gradients.residual(logits_fn, inputs, classes, baseline, maps)

        return self._apply_method("residual", residual, images, target, options, maps)

    def _apply_method(self, name, function, images, target, options, *arrays):
        targets = () if target is None else (self.class_indices(target, len(as_list(images))),)
        name = f"{name} {sorted(options.items())} of {len(targets)} targets"
        return self.apply(name, function, images, *arrays, *targets, batch_size=_BATCH_SIZE)

    def check_method(
        self, key: str, target: Target | None = None, **options: Any
    ) -> tuple[Method, dict[str, Any]]:
        """Find a method and its options, with defaults; raises UserError."""
        if key not in methods.METHODS:
            raise UserError(f"method={key!r} is unknown: use one of {', '.join(methods.METHODS)}")
        method = methods.METHODS[key]
        if method.of_class:
            self.check_head()
        elif target is not None:
            raise UserError(f"target has no effect with method={key!r}")
        if reason := methods.refusal(self.config, key):
            raise UserError(f"{self.name} {reason}: use one of {', '.join(self.methods)}")
        for name, value in options.items():
            if name not in method.options:
                known = f"use {', '.join(method.options)}" if method.options else "it has none"
                raise UserError(f"{name} is not an option of method={key!r}: {known}")
            methods.check_option(name, value)
        return method, dict(method.options) | options

    def _check_attention(self):
        if self.config.model.name != "vit":
            raise UserError(f"{self.name} is a {self.config.model.name}, which has no attention")

    def class_indices(self, target, count):
        """Find the class of each of `count` images, int32 [count]."""
        targets = [target] * count if np.ndim(target) == 0 else list(target)
        if len(targets) != count:
            raise UserError(f"there are {len(targets)} targets for {count} images: give one each")
        found = []
        for one in targets:
            one = one.item() if isinstance(one, jnp.ndarray) else one
            if isinstance(one, str) and one not in self.class_names and one.isdecimal():
                one = int(one)  # of a command line
            if isinstance(one, str) and one in self.class_names:
                found.append(self.class_names.index(one))
            elif isinstance(one, int | np.integer) and 0 <= one < len(self.class_names):
                found.append(int(one))
            else:
                raise UserError(
                    f"target={one!r} is not a class: use 0 to {len(self.class_names) - 1} or one "
                    f"of {join_names(self.class_names)}"
                )
        return np.array(found, np.int32)


def load_model(
    source: Path,
    *,
    num_heads: int | None = None,
    gelu: str | None = None,
    norm_eps: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    **others: Any,
) -> Model:
    """Load a finished model.

    Args:
      source: a run (RUN/VARIANT/seed_0), a converted checkpoint, or a weight file of another
        project: an official .npz, or .safetensors of a ViT of timm, Hugging Face, torchvision or
        open_clip, or of a ResNet18. A config.json next to the file is read too.
      num_heads: number of attention heads of a weight file.
      gelu: "tanh", "erf" or "quick", of a weight file.
      norm_eps: epsilon of LayerNorm of a weight file.
      mean: of the pixels in [0, 1], per channel, of a weight file.
      std: of the pixels in [0, 1], per channel, of a weight file.
      class_names: names of the classes, in the order of the head, in place of those of the source.
      **others: further options of a weight file: "architecture", "pool", "pooler_act", "pos_embed",
        "mlp", "norm", "image_size", "eval_crop", "resize_mode", "interpolation", as of `vit-jax
        convert`.

    Raises:
      UserError: the source is none of these, unfinished or damaged, or needs an option.
    """
    options = dict(others, num_heads=num_heads, gelu=gelu, norm_eps=norm_eps, mean=mean, std=std)
    if unknown := sorted(others.keys() - pretrained.OPTIONS.keys()):
        raise UserError(f"{unknown[0]} is not an option: use {', '.join(pretrained.OPTIONS)}")
    given = {name: value for name, value in options.items() if value is not None}
    return Model(source, pretrained.settings_of(given), needs_head=False, class_names=class_names)


def _as_model(model: Model | Path) -> Model:
    return model if isinstance(model, Model) else load_model(model)


def evaluate(
    model: Model | Path,
    data: Path | None = None,
    split: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict:
    """Evaluate a model, or the model at a path: `Model.evaluate`."""
    return _as_model(model).evaluate(data, split, overrides)


def predict(model: Model | Path, images: Images) -> np.ndarray:
    """Compute probabilities [n, classes] with a model, or the model at a path: `Model.predict`."""
    return _as_model(model).predict(images)


def explain(
    model: Model | Path,
    images: Images,
    method: str = "gradient_rollout",
    target: Target | None = None,
    **options: Any,
) -> np.ndarray:
    """Compute patch relevance with a model, or the model at a path: `Model.explain`."""
    return _as_model(model).explain(images, method, target, **options)
