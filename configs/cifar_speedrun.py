"""A plain ViT on CIFAR-10 to 90 % test accuracy in the least time on one GPU.

python -m vit_jax.main --config=configs/cifar_speedrun.py

A wide and shallow model keeps a GPU busier than a deep one, a class token less makes 64 tokens, and
large batches with a high learning rate need few steps. Published, without a clock on one GPU: plain
ViTs of patch size 4 need about 200 epochs for 90.9 % (github.com/omihub777/ViT-CIFAR). Not measured
yet.
"""

from vit_jax.config import presets


def get_config():
    """Build the base config of all variants."""
    config = presets.cifar10_vit()
    config.augment.kind = "autoaugment"
    config.augment.fill = 128  # what moved pixels uncover; black borders would stand out
    config.model.hidden_size = 384
    config.model.depth = 6
    config.model.num_heads = 6
    config.model.mlp_dim = 768
    config.model.pos_embed = "rope_2d"
    config.model.pool = "mean"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 5.0
    config.train.batch_size = 512
    config.train.epochs = 60.0
    config.train.eval_every_epochs = 20.0  # the clock runs on while it evaluates
    config.train.select = "last"
    config.log.explain_images = 0
    return config
