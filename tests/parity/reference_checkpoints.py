"""Tiny random checkpoints in the published layouts, written by transformers' own classes, and how to feed those.

Shapes are odd on purpose: more heads than key/value heads, odd vocabularies, three layers. The original
InternVLChatModel layout has no class in transformers: it is written here by a renaming of its own, independent of the
one under test.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_text import CHAT_TEMPLATES, build_tokenizer

TILE, PATCH = 32, 8
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": TILE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
# name -> (layout of prompt and tokenizer, text config, tied)
FAMILIES = {
    "smolvlm": ("smolvlm", {"model_type": "llama", "rope_theta": 100000.0}, False),
    "idefics3": ("smolvlm", {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3}, True),
    "internvl": ("internvl", {"model_type": "qwen2", "rope_theta": 1000000.0, "rope_scaling": DYNAMIC}, True),
    # Longer prompts than the positions it was "trained" on: the dynamic base really changes.
    "internvl-long": (
        "internvl",
        {"model_type": "qwen2", "rope_theta": 10000.0, "rope_scaling": DYNAMIC, "max_position_embeddings": 48},
        False,
    ),
    "internvl_chat": ("internvl", {"model_type": "qwen2", "rope_theta": 1000000.0, "rope_scaling": DYNAMIC}, False),
}


@dataclass
class Source:
    name: str
    layout: str
    folder: Path
    model: torch.nn.Module

    @property
    def is_smolvlm(self) -> bool:
        return self.layout == "smolvlm"


def randomise(model: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    """Weights large enough that every part matters to the logits; norms and scales near one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in dict.fromkeys(model.parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.1 * noise if parameter.dim() == 1 else scale * noise
    return model.eval()


def exact_positions(model: torch.nn.Module) -> torch.nn.Module:
    """Gives 4.57's SmolVLM and Idefics3 the position ids that they were trained with.

    In fp32 (not in bf16) 4.57 multiplies the fractional coordinates by 1 - 1e-6 and so puts all but the first patch of
    a row one bucket early: 0, 0, 1, 2, ... Transformers 5 gives 0, 1, 2, ..., as the original code does and Argus too.
    """
    if transformers.__version__.startswith("4."):
        embedding = model.model.vision_model.embeddings.position_embedding
        embedding.register_forward_pre_hook(
            lambda module, args: (torch.arange(module.num_embeddings, device=args[0].device).expand_as(args[0]),)
        )
    return model


def forget_long_prompts(model: torch.nn.Module) -> None:
    """transformers' dynamic rotary embedding keeps the base of the longest sequence it saw; this makes it as new."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq") and hasattr(module, "original_max_seq_len"):
            module.inv_freq = module.original_inv_freq
            module.max_seq_len_cached = module.original_max_seq_len


def reference_config(name: str, vocab_size: int, image_token_id: int):
    layout, text, tied = FAMILIES[name]
    text = {**TEXT, **text, "vocab_size": vocab_size, "tie_word_embeddings": tied}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shared = {"image_token_id": image_token_id, "tie_word_embeddings": tied, "text_config": text}
    if layout == "smolvlm":
        kind = "SmolVLM" if name == "smolvlm" else "Idefics3"
        return getattr(transformers, f"{kind}Config")(vision_config=VISION, scale_factor=2, **shared)
    vision = {**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH], "attention_bias": True}
    return transformers.InternVLConfig(vision_config=vision, image_seq_length=4, **shared)


def reference_model(config) -> torch.nn.Module:
    kind = {"smolvlm": "SmolVLM", "idefics3": "Idefics3", "internvl": "InternVL"}[config.model_type]
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def make_source(name: str, folder: Path) -> Source:
    """Writes the checkpoint folder and returns it with the model in it."""
    layout, _, _ = FAMILIES[name]
    tokenizer = build_tokenizer(layout)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>" if layout == "smolvlm" else "<IMG_CONTEXT>")
    config = reference_config(name, len(tokenizer) | 1, image_token_id)
    model = randomise(reference_model(config))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    write_processor_files(name, folder, tokenizer)
    if name == "internvl_chat":
        to_original_layout(folder)
    return Source(name, layout, folder, exact_positions(model) if layout == "smolvlm" else model)


def write_processor_files(name: str, folder: Path, tokenizer) -> None:
    """The files of the published repositories, by hand, so that they do not depend on the version that runs."""
    layout = FAMILIES[name][0]
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        **{f"{key}_token": getattr(tokenizer, f"{key}_token") for key in ("bos", "eos", "pad")},
    }
    pixels = {"do_resize": True, "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True}
    pixels |= {"do_convert_rgb": True}
    if layout == "smolvlm":
        kind = "SmolVLM" if name == "smolvlm" else "Idefics3"
        pixels |= {
            "image_processor_type": f"{kind}ImageProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 1,
            "size": {"longest_edge": 4 * TILE},
            "max_image_size": {"longest_edge": TILE},
            "do_image_splitting": True,
            "do_pad": True,
        }
        if name == "smolvlm":
            pixels["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": TILE}}
        processor = {"image_seq_len": 4, "processor_class": f"{kind}Processor"}
    else:
        named = ("start_image_token", "end_image_token", "context_image_token", "video_token")
        settings["extra_special_tokens"] = dict(zip(named, ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")))
        pixels |= {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": {"height": TILE, "width": TILE},
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 6,
        }
        processor = {"image_seq_length": 4, "processor_class": "InternVLProcessor"}
    pixels["processor_class"] = settings["processor_class"] = processor["processor_class"]
    for file, value in {
        "tokenizer_config.json": settings,
        "preprocessor_config.json": pixels,
        "processor_config.json": processor,
    }.items():
        (folder / file).write_text(json.dumps(value))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[layout])


def to_original_layout(folder: Path) -> None:
    """Rewrites an -hf InternVL folder as the original repository's InternVLChatModel saves it."""
    old = load_file(folder / "model.safetensors")
    new = {}
    for key, tensor in old.items():
        if re.search(r"attention\.[kv]_proj", key):
            continue
        if "attention.q_proj" in key:
            tensor = torch.cat([old[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        for pattern, name in (
            (r"^vision_tower\.", "vision_model."),
            (r"embeddings\.cls_token", "embeddings.class_embedding"),
            (r"embeddings\.position_embeddings", "embeddings.position_embedding"),
            (r"embeddings\.patch_embeddings\.projection", "embeddings.patch_embedding"),
            (r"encoder\.layer\.", "encoder.layers."),
            (r"attention\.q_proj", "attn.qkv"),
            (r"attention\.projection_layer", "attn.proj"),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"lambda_", "ls"),
            (r"^multi_modal_projector\.layer_norm", "mlp1.0"),
            (r"^multi_modal_projector\.linear_1", "mlp1.1"),
            (r"^multi_modal_projector\.linear_2", "mlp1.3"),
        ):
            key = re.sub(pattern, name, key)
        new[key] = tensor.contiguous()
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    text = raw["text_config"] | {"architectures": ["Qwen2ForCausalLM"]}
    text |= {"rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0}
    text.pop("rope_parameters", None)
    vision = {**VISION, "model_type": "intern_vit_6b", "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
    vision |= {"qk_normalization": False, "norm_type": "layer_norm", "drop_path_rate": 0.1, "dropout": 0.0}
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "use_thumbnail": True,
        "ps_version": "v2",
        "select_layer": -1,
        "pad2square": False,
        "template": "internvl2_5",
        "system_message": None,
        "tie_word_embeddings": False,
        "llm_config": text,
        "vision_config": vision,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True}))
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    images = {
        "do_normalize": True,
        "do_resize": True,
        "do_center_crop": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
    }
    images |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**images, "crop_size": TILE, "size": TILE}))


def reference_inputs(source_layout: str, inputs: dict, config) -> dict:
    """The model inputs of an Argus batch as transformers' classes want them: float pixels, SmolVLM's per row."""
    vision = config.vision_config
    statistics = [torch.tensor(values).view(1, 3, 1, 1) for values in (vision.image_mean, vision.image_std)]
    ours = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    if "pixel_values" not in inputs:
        return ours
    pixels = (inputs["pixel_values"].float() / 255 - statistics[0]) / statistics[1]
    if source_layout != "smolvlm":
        return {**ours, "pixel_values": pixels}
    tokens = (inputs["input_ids"] == config.image_token_id).sum(1) // config.image_seq_length
    rows = pixels.split(tokens.tolist())
    most = max(1, int(tokens.max()))
    padded = torch.zeros(len(rows), most, *pixels.shape[1:])
    for row, tiles in zip(padded, rows):
        row[: len(tiles)] = tiles
    return {**ours, "pixel_values": padded}
