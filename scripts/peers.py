"""The other side of scripts/benchmark.py, run in an interpreter that has torch, timm, torchvision.

    python peers.py MODE '{"image_size": 224, ...}'

It prints a line of JSON when it is ready. Then each line on standard input asks for one run, whose
seconds are the answer.
"""

import json
import sys
import time


def place():
    """Returns where the peer computes: as ours, on the accelerator if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(spec):
    """Returns the context in which products are taken in the spec's type."""
    import torch

    return torch.autocast(place(), torch.bfloat16, enabled=spec["dtype"] == "bfloat16")


def make_model(spec):
    """Returns timm's VisionTransformer, or torchvision's ResNet18 with a stem for small images."""
    import torch

    torch.manual_seed(0)
    if spec["model"] == "resnet18":
        from torchvision.models import resnet18

        model = resnet18(num_classes=spec["num_classes"])
        model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
        return model.to(place())
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=spec["image_size"],
        patch_size=spec["patch_size"],
        num_classes=spec["num_classes"],
        embed_dim=spec["hidden_size"],
        depth=spec["depth"],
        num_heads=spec["num_heads"],
        mlp_ratio=spec["mlp_dim"] / spec["hidden_size"],
    ).to(place())


def make_images(spec):
    """Returns a batch that is ready as float32, [b, 3, side, side]."""
    import torch

    shape = (spec["batch_size"], 3, spec["image_size"], spec["image_size"])
    return torch.randn(shape, device=place())


def train(spec):
    """Returns one update with AdamW; of the head alone if the spec says so."""
    import torch

    model, images = make_model(spec), make_images(spec)
    labels = torch.randint(0, spec["num_classes"], (len(images),), device=place())
    if spec["head_only"]:
        model.requires_grad_(False)
        (model.fc if spec["model"] == "resnet18" else model.head).requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=0.05, fused=True)
    forward = torch.compile(model) if spec["compile"] else model

    def step():
        optimizer.zero_grad()
        with precision(spec):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def infer(spec):
    """Returns one forward pass."""
    import torch

    model, images = make_model(spec).eval(), make_images(spec)
    forward = torch.compile(model) if spec["compile"] else model

    def step():
        with torch.inference_mode(), precision(spec):
            forward(images)

    return step, sum(p.numel() for p in model.parameters())


def explain(spec):
    """Returns attention rollout of a batch, the weights taken by hooks."""
    import torch

    model, images = make_model(spec).eval(), make_images(spec)
    found = []
    for block in model.blocks:
        block.attn.fused_attn = False  # the fused kernel keeps no weights
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: found.append(out))

    def step():
        found.clear()
        with torch.inference_mode():
            model(images)
            rollout = None
            for weights in found:
                layer = weights.mean(1) + torch.eye(weights.shape[-1], device=place())
                layer = layer / layer.sum(-1, keepdim=True)
                rollout = layer if rollout is None else layer @ rollout
            return rollout[:, 0, 1:]

    return step, sum(p.numel() for p in model.parameters())


def read_folder(spec):
    """Returns one pass over a folder of images with DataLoader: random crop, flip, normalise."""
    import torch
    from torchvision import datasets, transforms

    size = spec["image_size"]
    pipeline = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomCrop(size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(spec["folder"], pipeline),
        batch_size=spec["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=spec["workers"],
        persistent_workers=True,
    )

    def step():
        for images, _ in loader:
            images.sum()

    return step, len(loader) * spec["batch_size"]


def auto_augment(spec):
    """Returns torchvision's AutoAugment of one batch of 32 x 32 images, one after another."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    torch.set_num_threads(1)
    transform = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=128)
    pixels = np.random.default_rng(0).integers(0, 256, (spec["batch_size"], 32, 32, 3), np.uint8)
    images = [Image.fromarray(image) for image in pixels]

    def step():
        for image in images:
            transform(image)

    return step, 0


MODES = {f.__name__: f for f in (train, infer, explain, read_folder, auto_augment)}


def main():
    """Answers until the standard input ends."""
    import torch

    torch.set_float32_matmul_precision("high")  # on GPUs TF32, as XLA's products of float32
    step, size = MODES[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps({"size": size}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
