"""Make models of other projects with random weights, their files and their activations.

    pip install torch torchvision timm transformers safetensors
    python tests/make_zoo.py FOLDER
    python tests/make_zoo.py FOLDER --full
    python tests/make_zoo.py tests/golden/zoo --golden

Each subfolder is one model: its weights as its library writes them (model.safetensors or
model.npz), config.json, and golden.npz with normalised "images" [2, side, side, 3], "embedding" and
"blocks" (tokens before the first and after the last block) and "output" (logits, or the features of
a model without a head). given.json has the title and the options that no file records;
versions.json those of the libraries. Tiny models
have width 16, 2 blocks, 2 heads and 9 patches; --full makes some of real size, --golden those of
the test suite. scripts/conversion_table.py compares them with this project.
"""

import argparse
import json
import pathlib

import numpy as np
import timm
import torch
import torchvision
import transformers
from make_golden import randomize
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

TIMM = dict(img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5)
HF = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
HF |= dict(image_size=12, patch_size=4)
DINOV2 = {key: value for key, value in HF.items() if key != "intermediate_size"}
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
TEXT |= dict(vocab_size=50, bos_token_id=1, eos_token_id=2)
LABELS = dict(id2label={i: f"class {i}" for i in range(5)})
LABELS |= dict(label2id={f"class {i}": i for i in range(5)})
GOLDEN = (
    *("timm deit_base_distilled_patch16_224", "timm deit3_small_patch16_224", "timm test_vit4"),
    *("timm vit_giant_patch14_reg4_dinov2", "timm vit_base_patch16_clip_quickgelu_224"),
    *("timm vit_base_patch16_siglip_224", "timm vit_base_patch16_224, avgmax"),
    *("transformers DeiTForImageClassificationWithTeacher", "transformers ViTMAEForPreTraining"),
    *("transformers Dinov2WithRegistersForImageClassification", "transformers CLIPModel"),
    *("transformers IJepaForImageClassification", "transformers Siglip2VisionModel"),
    *("official DINOv2 with registers", "open_clip ViT-B/16", "big_vision SigLIP"),
)


class Zoo:
    """Writes the files of the models whose title `is_wanted` to a folder."""

    def __init__(self, folder, is_wanted):
        self.folder, self.is_wanted = folder, is_wanted

    def add(self, title, make, save, call=None, side=12, **options):
        """Make a model, write its files and record its activations.

        Args:
          title: library and name.
          make: a function that makes the model.
          save: (folder, model) -> the model to record: it, or another one that read the files.
          call: (model, images) -> the output.
          side: of the images.
          **options: settings that no file records.
        """
        if not self.is_wanted(title):
            return
        print(title, flush=True)
        torch.manual_seed(0)
        folder = self.folder / "".join(c if c.isalnum() else "_" for c in title)
        folder.mkdir(parents=True, exist_ok=True)
        record(folder, save(folder, randomize(make())).eval(), call, side)
        given = {"title": title, "options": options}
        (folder / "given.json").write_text(json.dumps(given) + "\n")

    def timm(self, name, note="", full=False, eps=None, **changes):
        """Add a model of timm by its name; a tiny one unless `full`."""
        args = changes if full else TIMM | changes
        own = {} if full else {key: args[key] for key in ("img_size", "num_heads")}
        for key in ("act_layer", "norm_layer", "fc_norm"):
            own |= {key: args[key]} if key in args else {}
        options = {"norm_eps": eps} if eps else {}
        if not full:
            options |= {"gelu": "erf"} if "act_layer" not in args else {}
            if "giant" in name and "dinov2" in name:
                options = {"mlp": "swiglu"}
        side = args.get("img_size", 0)

        def save(folder, model):
            save_state(folder, model.state_dict())
            config = {"architecture": name, "global_pool": model.global_pool, "model_args": own}
            if full and not side:
                config["pretrained_cfg"] = {"input_size": model.pretrained_cfg["input_size"]}
            (folder / "config.json").write_text(json.dumps(config) + "\n")
            return model

        def make():
            return timm.create_model(name, **args)

        side = side or timm.get_pretrained_cfg(name).input_size[-1]
        self.add(f"timm {name}{note}", make, save, None, side, **options)

    def hf(self, name, config, output, title="", side=12):
        """Add a model of transformers by its class; `output` selects from what it returns."""

        def save(folder, model):
            model.save_pretrained(folder)
            return model

        def make():
            kind = getattr(transformers, name)
            return kind(config)

        self.add(f"transformers {name}{title}", make, save, output, side)


def record(folder, model, call, side):
    """Run the model, and save the input of the first block, the output of the last, and its own."""
    captured, blocks = {}, blocks_of(model)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))

    def before(_, inputs, keywords):
        captured["embedding"] = inputs[0] if inputs else keywords["hidden_states"]

    def after(_, inputs, output):
        captured["blocks"] = output[0] if isinstance(output, tuple) else output

    blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    blocks[-1].register_forward_hook(after)
    with torch.no_grad():
        captured["output"] = call(model, images) if call else model(images)
    arrays = {key: value.numpy() for key, value in captured.items()}
    np.savez(folder / "golden.npz", images=images.permute(0, 2, 3, 1).numpy(), **arrays)


def blocks_of(model):
    """Find the blocks of the image tower."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential) and len(module) > 1:
            if name.split(".")[-1] in ("blocks", "layers", "layer") and "text" not in name:
                return module
    raise ValueError("the model has no blocks")


def save_state(folder, state):
    """Write a state dict to model.safetensors."""
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, folder / "model.safetensors")


def add_timm(zoo):
    """Models of timm; tiny ones ignore the size in their names."""
    for name in ("vit_base_patch16_224", "deit_small_patch16_224", "deit3_small_patch16_224"):
        zoo.timm(name)
    zoo.timm("deit_base_distilled_patch16_224")
    zoo.timm("vit_base_patch16_224", ", avg", global_pool="avg")
    zoo.timm("vit_base_patch16_224", ", avg without fc_norm", global_pool="avg", fc_norm=False)
    zoo.timm("vit_base_patch16_224", ", max", global_pool="max")
    zoo.timm("vit_base_patch16_224", ", avgmax", global_pool="avgmax")
    zoo.timm("vit_base_patch16_224", ", map", global_pool="map")
    zoo.timm("vit_base_patch16_224", ", qk_norm", qk_norm=True)
    zoo.timm("vit_base_patch16_224.dino", num_classes=0)
    zoo.timm("vit_base_patch16_224.mae", num_classes=0)
    zoo.timm("vit_small_patch14_dinov2", num_classes=0)
    zoo.timm("vit_small_patch14_reg4_dinov2", num_classes=0)
    zoo.timm("vit_giant_patch14_dinov2", num_classes=0, mlp_ratio=4)
    zoo.timm("vit_giant_patch14_reg4_dinov2", mlp_ratio=4)
    zoo.timm("vit_base_patch16_clip_224")
    zoo.timm("vit_base_patch16_clip_quickgelu_224", act_layer="quick_gelu")
    zoo.timm("vit_base_patch16_siglip_224")
    zoo.timm("vit_so400m_patch16_siglip_256", act_layer="gelu_tanh", mlp_ratio=3.7362)
    zoo.timm("vit_base_patch16_siglip_gap_224")
    zoo.timm("vit_medium_patch16_gap_256")
    zoo.timm("vit_base_patch16_reg4_gap_256")
    zoo.timm("vit_so150m_patch16_reg4_map_256")
    zoo.timm("vit_so150m2_patch16_reg1_gap_256")
    zoo.timm("vit_base_patch14_reg1_tipsv2", num_classes=0)
    zoo.timm("test_vit4", norm_layer="rmsnorm")


def logits(model, x):
    """Compute the logits of a model of transformers."""
    return model(x).logits


def pooled(model, x):
    """Compute the pooled output of a model of transformers."""
    return model(x).pooler_output


def add_hf(zoo):
    """Models of transformers."""
    t = transformers

    def cls(model, x):
        return model(x).last_hidden_state[:, 0]

    def mean(model, x):
        return model(x).last_hidden_state.mean(1)

    def masked(model, x):  # ViTMAE, with all patches in their order
        noise = torch.arange(9.0)[None].repeat(len(x), 1)
        return getattr(model, "vit", model)(x, noise=noise).last_hidden_state[:, 0]

    zoo.hf("ViTForImageClassification", t.ViTConfig(**HF, **LABELS), logits)
    zoo.hf("ViTModel", t.ViTConfig(**HF), pooled)
    zoo.hf("DeiTForImageClassification", t.DeiTConfig(**HF, **LABELS), logits)
    zoo.hf("DeiTForImageClassificationWithTeacher", t.DeiTConfig(**HF, **LABELS), logits)
    zoo.hf("ViTMSNForImageClassification", t.ViTMSNConfig(**HF, **LABELS), logits)
    zoo.hf("ViTMAEModel", t.ViTMAEConfig(**HF, mask_ratio=0.0), masked)
    decoder = {f"decoder_{key}": 2 for key in ("num_hidden_layers", "num_attention_heads")}
    decoder |= dict(decoder_hidden_size=16, decoder_intermediate_size=16)
    zoo.hf("ViTMAEForPreTraining", t.ViTMAEConfig(**HF, **decoder, mask_ratio=0.0), masked)
    zoo.hf("IJepaModel", t.IJepaConfig(**HF), mean)
    zoo.hf("IJepaForImageClassification", t.IJepaConfig(**HF, **LABELS), logits)
    small = DINOV2 | {"mlp_ratio": 2}
    zoo.hf("Dinov2Model", t.Dinov2Config(**small), pooled)
    zoo.hf("Dinov2ForImageClassification", t.Dinov2Config(**small, **LABELS), logits)
    giant = t.Dinov2Config(**small, use_swiglu_ffn=True)
    zoo.hf("Dinov2Model", giant, pooled, " with SwiGLU")
    registers = t.Dinov2WithRegistersConfig(**small, **LABELS)
    zoo.hf("Dinov2WithRegistersModel", registers, pooled)
    zoo.hf("Dinov2WithRegistersForImageClassification", registers, logits)


def add_hf_towers(zoo):
    """Image towers of transformers: CLIP and SigLIP."""
    t = transformers

    def tower(model, x):
        return model.vision_model(x).pooler_output

    def flat(model, x):  # SigLIP 2 takes patches
        tower = getattr(model, "vision_model", model)
        side = tower.config.patch_size
        b, c, height, _ = x.shape
        count = height // side
        patches = x.reshape(b, c, count, side, count, side).permute(0, 2, 4, 3, 5, 1)
        patches, shapes = patches.reshape(b, -1, side**2 * c), torch.tensor([[count, count]] * b)
        return tower(patches, torch.ones(b, count**2), shapes).pooler_output

    zoo.hf("CLIPVisionModel", t.CLIPVisionConfig(**HF), pooled)
    zoo.hf("CLIPVisionModelWithProjection", t.CLIPVisionConfig(**HF, projection_dim=8), tower)
    towers = dict(vision_config=HF, text_config=TEXT)
    zoo.hf("CLIPModel", t.CLIPConfig(**towers, projection_dim=8), tower)
    zoo.hf("SiglipVisionModel", t.SiglipVisionConfig(**HF), pooled)
    zoo.hf("SiglipModel", t.SiglipConfig(**towers), tower)
    zoo.hf("SiglipForImageClassification", t.SiglipConfig(**towers, **LABELS), logits)
    patches = {key: value for key, value in HF.items() if key != "image_size"}
    zoo.hf("Siglip2VisionModel", t.Siglip2VisionConfig(**patches, num_patches=9), flat)
    del patches["patch_size"]  # 16, the default, which transformers 4 does not write
    towers["vision_config"] = patches | dict(num_patches=9)
    zoo.hf("Siglip2Model", t.Siglip2Config(**towers), flat, side=48)


def add_others(zoo):
    """Files of torchvision, and of projects whose names timm reads: timm is the reference."""
    zoo.add(
        "torchvision VisionTransformer",
        lambda: torchvision.models.VisionTransformer(12, 4, 2, 2, 16, 32, num_classes=5),
        lambda folder, model: save_state(folder, model.state_dict()) or model,
        num_heads=2,
    )
    for title, parts in {"official MAE": {}, "official DINOv2": dict(init_values=1.0)}.items():
        add_official(zoo, title, TIMM | dict(num_classes=0) | parts)
    parts = dict(num_classes=0, init_values=1.0, reg_tokens=4, no_embed_class=True)
    add_official(zoo, "official DINOv2 with registers", TIMM | parts)
    add_clip(zoo)
    add_big_vision(zoo)


def add_official(zoo, title, args):
    """MAE or DINOv2 in their own names; of tokens before the patches, one has a position."""

    def save(folder, model):
        state = model.state_dict()
        state["mask_token"] = torch.ones(1, 16)
        if "reg_token" in state:
            state["register_tokens"] = state.pop("reg_token")
            state["pos_embed"] = torch.cat([torch.randn(1, 1, 16), state["pos_embed"]], 1)
        decoder = {"decoder_pred.bias": torch.ones(3)} if "MAE" in title else {}
        save_state(folder, state | decoder)
        model.load_state_dict(checkpoint_filter_fn(state, model))
        return model

    options = dict(num_heads=2, image_size=12, gelu="erf", pool="cls")
    zoo.add(title, lambda: VisionTransformer(**args), save, **options)


def add_clip(zoo):
    """An image-text model in the names of OpenAI and open_clip."""
    names = {
        "ln_pre": "norm_pre",
        "transformer.resblocks.": "blocks.",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "ln_1": "norm1",
        "ln_2": "norm2",
    }
    args = TIMM | dict(pre_norm=True, norm_layer=torch.nn.LayerNorm, act_layer="quick_gelu")
    args["num_classes"] = 0

    def save(folder, model):
        state = {}
        for key, value in model.state_dict().items():
            for theirs, own in names.items():
                key = key.replace(own, theirs)
            key = "ln_post" + key.removeprefix("norm") if key.startswith("norm.") else key
            state[f"visual.{key}"] = value
        state["visual.conv1.weight"] = state.pop("visual.patch_embed.proj.weight")
        state["visual.class_embedding"] = state.pop("visual.cls_token")[0, 0]
        state["visual.positional_embedding"] = state.pop("visual.pos_embed")[0]
        vision = dict(state)
        state["visual.proj"] = torch.ones(16, 8)
        text = ("transformer.resblocks.0.ln_1.weight", "ln_final.bias", "positional_embedding")
        state |= {key: torch.ones(8) for key in (*text, "text_projection", "logit_scale")}
        save_state(folder, state)
        model.load_state_dict(checkpoint_filter_fn(vision, model))
        return model

    options = dict(num_heads=2, gelu="quick")
    zoo.add("open_clip ViT-B/16", lambda: VisionTransformer(**args), save, **options)


def add_big_vision(zoo):
    """SigLIP of big_vision, as timm reads it, next to a tower for text."""
    args = TIMM | dict(class_token=False, global_pool="map", num_classes=0, act_layer="gelu_tanh")

    def dense(arrays, path, weight, bias, shape=None, bias_shape=None):
        arrays[f"{path}/kernel"] = weight.T.reshape(shape or weight.T.shape)
        arrays[f"{path}/bias"] = bias.reshape(bias_shape or bias.shape)

    def attention(arrays, path, weights, biases, out):
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            dense(arrays, f"{path}/{name}", weight, bias, (16, 2, 8), (2, 8))
        dense(arrays, f"{path}/out", *out, (2, 8, 16))

    def norm(arrays, path, layer):
        arrays[f"{path}/scale"], arrays[f"{path}/bias"] = layer

    def save(folder, model):
        state = {key: value.numpy() for key, value in model.state_dict().items()}

        def layer(name):
            return state[f"{name}.weight"], state[f"{name}.bias"]

        arrays = {"pos_embedding": state["pos_embed"], "MAPHead_0/probe": state["attn_pool.latent"]}
        arrays["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
        arrays["embedding/bias"] = state["patch_embed.proj.bias"]
        norm(arrays, "Transformer/encoder_norm", layer("norm"))
        paths = [(f"Transformer/encoderblock_{i}", f"blocks.{i}.") for i in range(2)]
        for ours, theirs in paths:
            path = f"{ours}/MultiHeadDotProductAttention_0"
            weights, biases = (np.split(x, 3) for x in layer(f"{theirs}attn.qkv"))
            attention(arrays, path, weights, biases, layer(f"{theirs}attn.proj"))
            norm(arrays, f"{ours}/LayerNorm_0", layer(f"{theirs}norm1"))
            norm(arrays, f"{ours}/LayerNorm_1", layer(f"{theirs}norm2"))
        query, (keys, values) = (
            layer("attn_pool.q"),
            zip(*(np.split(x, 2) for x in layer("attn_pool.kv")), strict=True),
        )
        weights, biases = zip(query, keys, values, strict=True)
        path = "MAPHead_0/MultiHeadDotProductAttention_0"
        attention(arrays, path, weights, biases, layer("attn_pool.proj"))
        norm(arrays, "MAPHead_0/LayerNorm_0", layer("attn_pool.norm"))
        for ours, theirs in [*paths, ("MAPHead_0", "attn_pool.")]:
            for j in (0, 1):
                dense(arrays, f"{ours}/MlpBlock_0/Dense_{j}", *layer(f"{theirs}mlp.fc{j + 1}"))
        arrays = {f"params/img/{key}": value for key, value in arrays.items()}
        np.savez(folder / "model.npz", **arrays, **{"params/txt/head/bias": np.ones(3), "t": 1.0})
        read = VisionTransformer(**args)
        read.load_pretrained(str(folder / "model.npz"))
        return read

    zoo.add("big_vision SigLIP", lambda: VisionTransformer(**args), save, image_size=12)


def add_full(zoo):
    """Some models of real size."""
    t = transformers
    zoo.timm("deit_base_distilled_patch16_224", full=True)
    zoo.timm("vit_small_patch14_reg4_dinov2", full=True, num_classes=0)
    zoo.timm("vit_base_patch16_clip_quickgelu_224", full=True)
    zoo.timm("vit_so400m_patch14_siglip_224", full=True, num_classes=0)
    zoo.hf(
        "Dinov2ForImageClassification",
        t.Dinov2Config(image_size=224, patch_size=14, **LABELS),
        lambda model, x: model(x).logits,
        side=224,
    )
    zoo.hf("SiglipVisionModel", t.SiglipVisionConfig(), lambda m, x: m(x).pooler_output, side=224)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--golden", action="store_true")
    args = parser.parse_args()
    libraries = (torch, torchvision, timm, transformers)
    versions = {library.__name__: library.__version__.split("+")[0] for library in libraries}
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "versions.json").write_text(json.dumps(versions) + "\n")
    zoo = Zoo(args.folder, lambda title: not args.golden or title in GOLDEN)
    for add in (add_full,) if args.full else (add_timm, add_hf, add_hf_towers, add_others):
        add(zoo)
