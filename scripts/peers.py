"""PyTorch peers of scripts/benchmark.py, run in an interpreter with torch, timm and torchvision.

    python peers.py MODE '{"image_size": 224, ...}'

Prints a line of JSON when ready. Then runs once per line on standard input and prints the seconds.
"""

import json
import sys
import time


def device():
    """Name the device of the peer: the accelerator if there is one, as in JAX."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(spec):
    """Make the autocast context for the dtype of the spec."""
    import torch

    return torch.autocast(device(), torch.bfloat16, enabled=spec["dtype"] == "bfloat16")


def make_model(spec):
    """Build timm's VisionTransformer, or torchvision's ResNet18 with a CIFAR stem."""
    import torch

    torch.manual_seed(0)
    if spec["model"] == "resnet18":
        from torchvision.models import resnet18

        model = resnet18(num_classes=spec["num_classes"])
        model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
        return model.to(device(), memory_format=torch.channels_last)
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=spec["image_size"],
        patch_size=spec["patch_size"],
        num_classes=spec["num_classes"],
        embed_dim=spec["hidden_size"],
        depth=spec["depth"],
        num_heads=spec["num_heads"],
        mlp_ratio=spec["mlp_dim"] / spec["hidden_size"],
    ).to(device())


def make_images(spec):
    """Draw a random float32 batch [b, 3, side, side]."""
    import torch

    shape = (spec["batch_size"], 3, spec["image_size"], spec["image_size"])
    images = torch.randn(shape, device=device())
    layout = torch.channels_last if spec["model"] == "resnet18" else torch.contiguous_format
    return images.to(memory_format=layout)


def train(spec):
    """Make a training step with AdamW, of the head only for spec["head_only"]."""
    import torch

    model, images = make_model(spec), make_images(spec)
    labels = torch.randint(0, spec["num_classes"], (len(images),), device=device())
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


def laptop(spec):
    """Make a training step of a ViT with a convolutional stem: crop, flip, Muon and AdamW."""
    import torch
    from timm.models.vision_transformer import Block
    from torch import nn

    torch.manual_seed(0)
    d, side, b = spec["hidden_size"], spec["image_size"], spec["batch_size"]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            layers = []
            for channels, width in ((3, 64), (64, d)):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
                layers += [nn.MaxPool2d(3, 2, 1)]
            ratio, blocks = spec["mlp_dim"] / d, range(spec["depth"])
            self.stem = nn.Sequential(*layers)
            self.register_buffer("positions", torch.randn(1, (side // 4) ** 2, d))
            self.blocks = nn.Sequential(
                *(Block(d, spec["num_heads"], ratio, qkv_bias=True) for _ in blocks)
            )
            self.norm, self.head = nn.LayerNorm(d, 1e-6), nn.Linear(d, spec["num_classes"])

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2) + self.positions
            return self.head(self.norm(self.blocks(x)).mean(1))

    model = Model().to(device())
    pixels = torch.randint(0, 256, (b, 3, side, side), dtype=torch.uint8, device=device())
    labels = torch.randint(0, spec["num_classes"], (b,), device=device())
    kernels = [p for p in model.blocks.parameters() if p.ndim == 2]
    ids = set(map(id, kernels))
    rest = [p for p in model.parameters() if id(p) not in ids]
    optimizers = (
        torch.optim.Muon(kernels, 1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, 1e-3, weight_decay=0.05, fused=True),
    )
    forward = torch.compile(model) if spec["compile"] else model

    def augment():
        padded = nn.functional.pad(pixels, (4,) * 4)
        windows = padded.unfold(2, side, 1).unfold(3, side, 1)  # [b, 3, 9, 9, side, side]
        rows, columns = torch.randint(0, 9, (2, b), device=device())
        images = windows[torch.arange(b, device=device()), :, rows, columns]
        mirrored = torch.rand(b, device=device())[:, None, None, None] < 0.5
        return torch.where(mirrored, images.flip(3), images).float() / 64 - 2

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        images = augment()
        with precision(spec):
            loss = nn.functional.cross_entropy(forward(images), labels, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def infer(spec):
    """Make a forward pass."""
    import torch

    model, images = make_model(spec).eval(), make_images(spec)
    forward = torch.compile(model) if spec["compile"] else model

    def step():
        with torch.inference_mode(), precision(spec):
            forward(images)

    return step, sum(p.numel() for p in model.parameters())


def explain(spec):
    """Make an explanation of a batch by spec["method"]."""
    import torch

    model, images = make_model(spec).eval(), make_images(spec)
    if spec["method"] == "rollout":
        step = make_rollout(model, images)
    elif spec["method"] == "grad_cam":
        step = make_grad_cam(model, images, spec)
    else:
        from captum import attr

        of_path = spec["method"] == "integrated_gradients"
        method = (attr.IntegratedGradients if of_path else attr.InputXGradient)(model)
        # All steps of the path at once would need the memory of 512 images.
        options = {"n_steps": spec["steps"], "internal_batch_size": len(images)} if of_path else {}

        with torch.no_grad():
            classes = model(images).argmax(-1)

        def step():
            inputs = images.clone().requires_grad_()
            return method.attribute(inputs, target=classes, **options)

    return step, sum(p.numel() for p in model.parameters())


def make_rollout(model, images):
    """Make attention rollout, with forward hooks on the attention weights."""
    import torch

    weights = []
    for block in model.blocks:
        block.attn.fused_attn = False  # the fused kernel does not return the weights
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: weights.append(out))

    def step():
        weights.clear()
        with torch.inference_mode():
            model(images)
            rollout = None
            for attention in weights:
                layer = attention.mean(1) + torch.eye(attention.shape[-1], device=device())
                layer = layer / layer.sum(-1, keepdim=True)
                rollout = layer if rollout is None else layer @ rollout
            return rollout[:, 0, 1:]

    return step


def make_grad_cam(model, images, spec):
    """Make pytorch-grad-cam's Grad-CAM of the last block's input, as its documentation does."""
    from pytorch_grad_cam import GradCAM

    side = spec["image_size"] // spec["patch_size"]

    def to_maps(tokens):
        return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)

    cam = GradCAM(model, [model.blocks[-1].norm1], reshape_transform=to_maps)
    return lambda: cam(input_tensor=images, targets=None)  # the predicted classes


def read_folder(spec):
    """Make an epoch over an image folder with DataLoader: random crop, flip, normalise."""
    import torch
    from torchvision import datasets, transforms

    size = spec["image_size"]
    crops = [
        transforms.Resize(size),
        transforms.CenterCrop(size),
        transforms.RandomCrop(size, padding=4),
    ]
    if spec["crop_min_area"]:
        crops = [transforms.RandomResizedCrop(size, (spec["crop_min_area"], 1))]
    pipeline = transforms.Compose(
        [
            *crops,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = datasets.ImageFolder(spec["folder"], pipeline)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(images, range(spec["count"])),
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
    """Make torchvision's AutoAugment of a batch of 32x32 images, one at a time."""
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


MODES = {f.__name__: f for f in (train, laptop, infer, explain, read_folder, auto_augment)}


def main():
    """Run once per line on standard input."""
    import torch

    torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as XLA uses for float32
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
