"""Make the files in tests/golden: tiny models of other projects and their activations.

    pip install torch torchvision timm transformers safetensors
    python tests/make_golden.py

Random weights: width 48, 2 blocks, 3 heads, 9 patches of 4x4 pixels, 7 classes (timm's with mean
pooling has 5). golden.npz contains normalised "images" [2, 12, 12, 3] and the model's activations:
"embeddings" and "block" (tokens before and after the first block; for resnet18, "block" is the
output of the first block, [b, h, w, c]) and "logits"; resized.npz contains the resized position
embeddings of timm, transformers and torchvision and timm's resized patch kernel.

preprocessed/ has photos.npz, uint8 images of several shapes, and for each library a model for 32x32
pixels (timm's with a tanh GELU and class names) with its config files; golden.npz has the pixels
[4, 32, 32, 3] of the photos, normalised by the library's evaluation transform, and their logits.
timm_squash has other preprocessing and the weights of timm; timm_resnet18 has timm's config.json
and logits of the weights in resnet18.
"""

import json
import pathlib

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms._presets import ImageClassification
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

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
                elif value.ndim <= 1:
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
        **{f"torchvision_{n}": interpolate_torchvision(table, n).numpy() for n in (2, 5)},
        hf=embeddings.interpolate_pos_encoding(torch.zeros(1, 26, 48), 20, 20).detach().numpy(),
        kernel=kernel.permute(2, 3, 1, 0).numpy(),
        kernel_6=resample_patch_embed(kernel, [6, 6]).permute(2, 3, 1, 0).numpy(),
    )


def interpolate_torchvision(table, side):
    """Resize positions of 3x3 patches as torchvision does when it loads weights."""
    state = {"encoder.pos_embedding": table}
    return interpolate_embeddings(side * 4, 4, state)["encoder.pos_embedding"]


def make_photos():
    """Smooth, noisy images of four shapes."""
    rng, photos = np.random.default_rng(3), []
    for height, width in ((50, 71), (71, 50), (40, 40), (33, 90)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
        noisy = smooth + rng.normal(0, 25, smooth.shape)
        photos.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    folder = GOLDEN / "preprocessed"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "photos.npz", *map(np.asarray, photos))
    return photos


def record_photos(folder, pixels, logits):
    """Save preprocessed photos [b, c, h, w] and their logits."""
    np.savez(folder, images=pixels.permute(0, 2, 3, 1).numpy(), logits=logits.detach().numpy())


def make_preprocessed():
    """Evaluation transforms of timm (cropped and squashed), transformers and torchvision."""
    photos, folder = make_photos(), GOLDEN / "preprocessed"
    size = dict(img_size=32, patch_size=8, num_classes=7, embed_dim=48, depth=1, num_heads=3)
    size |= dict(mlp_ratio=2, act_layer="gelu_tanh")
    model = randomize(VisionTransformer(**size))
    names = [f"class {i}" for i in (1, 2, 10, 11, 100, 20, 3)]
    model.pretrained_cfg = dict(
        architecture="vit_tiny_of_a_test",
        input_size=(3, 32, 32),
        mean=(0.48, 0.45, 0.4),
        std=(0.22, 0.23, 0.24),
        first_conv="patch_embed.proj",
        classifier="head",
    )
    for name, cfg in {
        "timm": dict(crop_pct=0.9, interpolation="bicubic", crop_mode="center"),
        "timm_squash": dict(crop_pct=0.8, interpolation="bilinear", crop_mode="squash"),
    }.items():
        model.pretrained_cfg |= cfg
        own = dict(model_config=dict(label_names=names), model_args=size)
        save_for_hf(model, folder / name, safe_serialization=True, **own)
        read = json.loads((folder / name / "config.json").read_text())["pretrained_cfg"]
        transform = create_transform(**resolve_data_config(pretrained_cfg=read))
        pixels = torch.stack([transform(photo) for photo in photos])
        record_photos(folder / name / "golden.npz", pixels, model(pixels))
    (folder / "timm_squash" / "model.safetensors").unlink()  # the same as timm's
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        id2label={i: name for i, name in enumerate(names)},
        label2id={name: i for i, name in enumerate(names)},
    )
    model = randomize(ViTForImageClassification(config))
    model.save_pretrained(folder / "hf")
    processor = ViTImageProcessor(size=dict(height=32, width=32), resample=2)
    processor.save_pretrained(folder / "hf")
    pixels = processor(photos, return_tensors="pt")["pixel_values"]
    record_photos(folder / "hf" / "golden.npz", pixels, model(pixels).logits)
    model = randomize(torchvision.models.VisionTransformer(32, 8, 1, 3, 48, 96, num_classes=7))
    (folder / "torchvision").mkdir(exist_ok=True)
    save_weights(folder / "torchvision", model)
    transform = ImageClassification(crop_size=32, resize_size=36)
    pixels = torch.stack([transform(photo) for photo in photos])
    record_photos(folder / "torchvision" / "golden.npz", pixels, model(pixels))


def make_timm_resnet18():
    """timm's ResNet18 with the weights of torchvision's, of a sixteenth of the width."""
    model = timm.create_model("resnet18", num_classes=7, channels=(4, 8, 16, 32))
    model.conv1, model.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
    model.layer1[0] = timm.models.resnet.BasicBlock(4, 4)
    model.load_state_dict(load_file(GOLDEN / "resnet18" / "model.safetensors"))
    folder = GOLDEN / "timm_resnet18"
    record(folder, model.eval(), False, model.layer1[0])
    save_for_hf(model, folder, safe_serialization=True)
    (folder / "model.safetensors").unlink()


if __name__ == "__main__":
    makers = (make_timm, make_npz, make_hf, make_torchvision, make_resized)
    for make in (*makers, make_preprocessed, make_timm_resnet18):
        torch.manual_seed(0)
        make()
