"""Train on the digits and classify them through the Python API, with outputs in ./demo."""

from sklearn.datasets import load_digits

import vit_jax

settings = {"train.epochs": 4.0, "train.num_seeds": 1, "optim.warmup_epochs": 0.0}
config = vit_jax.load_config("digits_patch", settings, variant="patch_2")
vit_jax.train(config, workdir="demo")
model = vit_jax.load_model("demo/patch_2/seed_0")
digits = load_digits()
images = (digits.images * 255 / 16).astype("uint8")[..., None]  # [n, 8, 8, 1]
probabilities = model.predict(images)  # [n, 10]
assert probabilities.shape == (len(images), 10)
accuracy = (probabilities.argmax(1) == digits.target).mean()
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.25  # chance is 0.1; an epoch reaches 0.4
