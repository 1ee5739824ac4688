"""`Model`: a finished model that predicts, evaluates, and explains itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax import models, pretrained
from vit_jax.config import Config
from vit_jax.evaluation.classifier import Classifier
from vit_jax.evaluation.inputs import Images, Path, as_list
from vit_jax.explanation import attribution
from vit_jax.runtime.errors import UserError, join_names

METHODS = {name.replace(" ", "_"): name for name in ("gradient rollout", "rollout", "last layer")}
Target = int | str | Sequence[int | str] | np.ndarray
_BATCH_SIZE = 8  # attention weights are large: 22 MB per image in a B/16 at 224 pixels


def token_layout(config: Config) -> tuple[tuple[int, int], bool, int]:
    """Compute the rows and columns of patches, whether the head sees a class token, and registers.

    The class token is token 0. Registers are counted; they come before the patches. A class token
    that the head does not see counts as one of them.
    """
    if config.model.name != "vit":
        return (0, 0), False, 0
    side = config.data.image_size // config.model.patch_size
    has_cls, extra = models.has_cls(config.model), config.model.class_token
    return (side, side), has_cls and not extra, config.model.num_registers + extra


def has_relevance(config: Config) -> bool:
    """Whether explanations are defined: the head uses the class token or the mean of patches."""
    return config.model.name == "vit" and config.model.pool in ("cls", "mean")


class Model(Classifier):
    """A `Classifier` with its attention and explanations.

    The arguments are those of `Classifier`.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; (0, 0) for a ResNet."""
        return token_layout(self.config)[0]

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

    def explain(
        self, images: Images, method: str = "gradient_rollout", target: Target | None = None
    ) -> np.ndarray:
        """Compute how much each patch contributes to the prediction.

        Args:
          images: as in `read_images`.
          method: "gradient_rollout" (evidence for the target class), "rollout" or "last_layer"
            (the mean of the last layer's heads).
          target: index or name of a class, one for all images or one for each; None: the predicted
            class of each. Only gradient_rollout depends on the class.

        Returns:
          float32 [n, rows, columns], not normalised.

        Raises:
          UserError: an image, method or target cannot be used, or the model is a ResNet.
        """
        if method not in METHODS:
            raise UserError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
        if method == "gradient_rollout":
            self.check_head()
        elif target is not None:
            raise UserError(f"target has no effect with method={method!r}")
        self._check_attention()
        if not has_relevance(self.config):
            raise UserError(
                f"{self.name} has model.pool={self.config.model.pool}: explanations need cls or "
                "mean"
            )
        targets = () if target is None else (self.class_indices(target, len(as_list(images))),)
        model = self.make_model()

        def relevance(variables, inputs, *classes):
            if method == "gradient_rollout":
                _, inside, grads = models.attention_gradients(model, variables, inputs, *classes)
            else:
                inside, grads = model.apply(variables, inputs, capture=True)[1], []
            layout = token_layout(self.config)
            return attribution.explanation(METHODS[method], inside["attention"], grads, *layout)

        name = f"{method} of {'the target' if targets else 'the prediction'}"
        return self.apply(name, relevance, images, *targets, batch_size=_BATCH_SIZE)

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
) -> np.ndarray:
    """Compute patch relevance with a model, or the model at a path: `Model.explain`."""
    return _as_model(model).explain(images, method, target)
