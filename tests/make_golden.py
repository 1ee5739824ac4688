"""Make the files in tests/golden: tiny models of other projects and their activations.

    pip install torch torchvision timm transformers safetensors
    python tests/make_golden.py

Random weights: width 48, 2 blocks, 3 heads, 9 patches of 4x4 pixels, 7 classes (timm's with mean
pooling has 5). golden.npz contains normalised "images" [2, 12, 12, 3] and the model's activations:
"embeddings" and "block" (tokens before and after the first block; for resnet18, "block" is the
output of the first block, [b, h, w, c]) and "logits"; resized.npz contains timm's and transformers'
resized position embeddings and timm's resized patch kernel.
"""

import pathlib

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZE = dict(img_size=12, patch_size=4, num_classes=7, embed_dim=48, depth=2, num_heads=3)
IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def randomize(model):
    """Randomise every parameter, including those initialised to zeros or ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                if "running_var" in name:
                    value.copy_(1 + 0.3 * noise.abs())
                elif value.ndim == 1:
                    value.add_(0.3 * noise)
                else:
                    value.copy_(noise * (value[0].numel() ** -0.5 if value.ndim != 3 else 0.5))
    return model.eval()


def record(folder, model, embeddings, block, call=None):
    """Run the model and save the input and output of `block`."""
    captured = {}

    def hook(module, inputs, output):
        captured["embeddings"] = inputs[0]
        captured["block"] = output[0] if isinstance(output, tuple) else output

    handle = block.register_forward_hook(hook)
    with torch.no_grad():
        logits = (call or model)(IMAGES)
    handle.remove()
    if not embeddings:
        del captured["embeddings"]
        captured["block"] = captured["block"].permute(0, 2, 3, 1)
    arrays = {key: value.numpy() for key, value in (captured | {"logits": logits}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "golden.npz", images=IMAGES.permute(0, 2, 3, 1).numpy(), **arrays)


def save_weights(folder, model):
    """Write model.safetensors."""
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )


def make_timm():
    """timm: with the class token, and with a mean and no biases in the attention."""
    model = randomize(VisionTransformer(mlp_ratio=2, **SIZE))
    record(GOLDEN / "timm", model, True, model.blocks[0])
    save_weights(GOLDEN / "timm", model)
    mean = dict(class_token=False, global_pool="avg", fc_norm=False, qkv_bias=False)
    model = randomize(VisionTransformer(mlp_ratio=2, **SIZE | dict(num_classes=5), **mean))
    record(GOLDEN / "timm_mean", model, True, model.blocks[0])
    save_weights(GOLDEN / "timm_mean", model)


def official(model):
    """Rename timm's weights to the names of the official file of 2020."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(2):
        block, ours = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, theirs in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{ours}{norm}/scale"] = state[f"{block}{theirs}.weight"]
            arrays[f"{ours}{norm}/bias"] = state[f"{block}{theirs}.bias"]
        attention = f"{ours}MultiHeadDotProductAttention_1/"
        weight, bias = state[f"{block}attn.qkv.weight"], state[f"{block}attn.qkv.bias"]
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(48 * j, 48 * (j + 1))
            arrays[f"{attention}{name}/kernel"] = weight[rows].T.reshape(48, 3, 16)
            arrays[f"{attention}{name}/bias"] = bias[rows].reshape(3, 16)
        arrays[f"{attention}out/kernel"] = state[f"{block}attn.proj.weight"].T.reshape(3, 16, 48)
        arrays[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
        for j in (0, 1):
            dense = f"{ours}MlpBlock_3/Dense_{j}/"
            arrays[f"{dense}kernel"] = state[f"{block}mlp.fc{j + 1}.weight"].T
            arrays[f"{dense}bias"] = state[f"{block}mlp.fc{j + 1}.bias"]
    return arrays


def make_npz():
    """The official layout, read by timm's own loader into a model with the official GELU."""
    folder = GOLDEN / "npz"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = official(randomize(VisionTransformer(mlp_ratio=2, **SIZE)))
    np.savez(folder / "model.npz", **arrays)
    model = VisionTransformer(mlp_ratio=2, act_layer="gelu_tanh", **SIZE)
    model.load_pretrained(str(folder / "model.npz"))
    with torch.no_grad():  # the loader reads the head only for the number of classes of ImageNet
        model.head.weight.copy_(torch.tensor(arrays["head/kernel"].T))
        model.head.bias.copy_(torch.tensor(arrays["head/bias"]))
    record(folder, model.eval(), True, model.blocks[0])


def make_hf():
    """transformers: a classifier, and a bare encoder with its pooler."""
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=12,
        patch_size=4,
        id2label={i: f"class {i}" for i in range(7)},
        label2id={f"class {i}": i for i in range(7)},
    )
    model = randomize(ViTForImageClassification(config))
    record(GOLDEN / "hf", model, True, model.vit.layers[0], lambda x: model(x).logits)
    model.save_pretrained(GOLDEN / "hf")
    bare = randomize(ViTModel(config))
    record(GOLDEN / "hf_bare", bare, True, bare.layers[0], lambda x: bare(x).pooler_output)
    bare.save_pretrained(GOLDEN / "hf_bare")


def make_torchvision():
    """torchvision: a ViT, and a ResNet18 of a sixteenth of the width."""
    model = randomize(torchvision.models.VisionTransformer(12, 4, 2, 3, 48, 96, num_classes=7))
    record(GOLDEN / "torchvision", model, True, model.encoder.layers[0])
    save_weights(GOLDEN / "torchvision", model)
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [2, 2, 2, 2])
    model.inplanes, model.conv1 = 4, nn.Conv2d(3, 4, 7, 2, 3, bias=False)
    model.bn1, model.fc = nn.BatchNorm2d(4), nn.Linear(32, 7)
    for i in range(4):
        layer = model._make_layer(block, 4 * 2**i, 2, stride=min(i, 1) + 1)
        setattr(model, f"layer{i + 1}", layer)
    randomize(model)
    record(GOLDEN / "resnet18", model, False, model.layer1[0])
    save_weights(GOLDEN / "resnet18", model)


def make_resized():
    """Position embeddings of 3x3 patches for 5x5, a 4x4 patch kernel for 6x6."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(1, 10, 48, generator=generator)
    config = ViTConfig(hidden_size=48, num_hidden_layers=1, image_size=12, patch_size=4)
    embeddings = ViTModel(config).embeddings
    embeddings.position_embeddings.data = table
    kernel = torch.randn(48, 3, 4, 4, generator=generator)
    np.savez(
        GOLDEN / "resized.npz",
        table=table.numpy(),
        timm=resample_abs_pos_embed(table, [5, 5]).numpy(),
        hf=embeddings.interpolate_pos_encoding(torch.zeros(1, 26, 48), 20, 20).detach().numpy(),
        kernel=kernel.permute(2, 3, 1, 0).numpy(),
        kernel_6=resample_patch_embed(kernel, [6, 6]).permute(2, 3, 1, 0).numpy(),
    )


if __name__ == "__main__":
    for make in (make_timm, make_npz, make_hf, make_torchvision, make_resized):
        torch.manual_seed(0)
        make()
