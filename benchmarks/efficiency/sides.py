"""The two sides of every comparison: transformers' model and processor, and Argus' over the same weights and tokenizer.

A side takes a request apart into the steps that both have: decode, tile, prepare, transfer, encode, generate.
"""

import io
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image

from processing_argus import ArgusImageProcessor, ArgusProcessor

from .measuring import in_turn
from .models import build_ours, build_reference
from .offline_tokenizer import CHAT_TEMPLATES, IMAGE_TOKEN, PROMPT, offline_tokenizer
from .shapes import MEAN_STD, Shape

BACKENDS = ("torchvision", "pil")
# Names of the sides in tables.
OURS, OURS_ONE_RESIZE, OURS_NATIVE = "Argus", "Argus, one resize", "Argus, native tiling"
TORCHVISION, PIL = "transformers, torchvision", "transformers, PIL"
# transformers 4.57 names the torchvision classes Fast, 5.x the Pillow ones Pil.
_IMAGE_CLASSES = {
    ("smolvlm", "torchvision"): ("SmolVLMImageProcessorFast", "SmolVLMImageProcessor"),
    ("smolvlm", "pil"): ("SmolVLMImageProcessorPil", "SmolVLMImageProcessor"),
    ("internvl", "torchvision"): ("GotOcr2ImageProcessorFast", "GotOcr2ImageProcessor"),
    ("internvl", "pil"): ("GotOcr2ImageProcessorPil", "GotOcr2ImageProcessor"),
    ("qwen3_vl", "torchvision"): ("Qwen2VLImageProcessorFast", "Qwen2VLImageProcessor"),
    ("qwen3_vl", "pil"): ("Qwen2VLImageProcessorPil", "Qwen2VLImageProcessor"),
}


def messages(image, prompt: str = PROMPT) -> list[dict]:
    """One captioning request about one image."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]


@dataclass
class Side:
    """One side: its model and processor, and a request taken apart into the steps that both have.

    Attributes:
        model: the model, or None where only preprocessing is measured.
        device: where the model is; None is the CPU.
        options: keyword arguments of every processor call (ours only).
    """

    name: str
    processor: Any
    model: Any = None
    ours: bool = False
    device: torch.device | None = None
    dtype: torch.dtype = torch.bfloat16
    options: dict | None = None

    def __post_init__(self):
        self.device = torch.device(self.device or "cpu")

    def decode(self, data: bytes):
        """JPEG bytes -> what this side's processor takes without decoding again."""
        if self.ours:
            return self.processor.image_processor.fetch_images(data)
        return Image.open(io.BytesIO(data)).convert("RGB")

    def tile(self, image):
        """A decoded image -> pixel values on the CPU, without any text."""
        return self.processor.image_processor(images=[image], return_tensors="pt", **(self.options or {}))

    def prepare(self, image):
        """A decoded image (ours: also bytes) -> model inputs, on the CPU."""
        return self._template(image, **(self.options or {}))

    def prepare_on_device(self, image):
        """A decoded image (ours: also bytes) -> model inputs on the device, in the dtype that the model takes."""
        if self.ours:
            on_device = {} if self.device.type == "cpu" else {"device": self.device}
            return self._template(image, **(self.options or {}), **on_device)
        return self.transfer(self._template(image))

    def transfer(self, inputs):
        """Model inputs from the CPU to the device; theirs are floats and are cast, as their documentation does."""
        return inputs.to(self.device) if self.ours else inputs.to(self.device, dtype=self.dtype)

    def request(self, data: bytes):
        """JPEG bytes -> model inputs on the device."""
        return self.prepare_on_device(data if self.ours else self.decode(data))

    @torch.no_grad()
    def encode(self, inputs):
        """Vision tower and connector alone."""
        names = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
        images = {name: inputs[name] for name in names if name in inputs and (name == "pixel_values" or not self.ours)}
        return self.model.get_image_features(**images)

    @torch.no_grad()
    def generate(self, inputs, new_tokens: int) -> list[int]:
        """Greedy ids of exactly `new_tokens` new tokens, read back to the host."""
        settings = {"max_new_tokens": new_tokens, "min_new_tokens": None, "do_sample": False}
        ids = self.model.generate(**inputs, **settings)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()

    @torch.no_grad()
    def logits(self, inputs) -> torch.Tensor:
        """float32[V] on the CPU: logits of the first new token."""
        return self.model(**inputs, logits_to_keep=1).logits[0, -1].float().cpu()

    def levels(self, inputs) -> torch.Tensor:
        """float32[tiles, 3, S, S] on the CPU: the tiles of model inputs as levels of 255, whatever they came as."""
        pixels = inputs["pixel_values"].cpu()
        if not pixels.is_floating_point():
            return pixels.float()
        images = self.processor.image_processor
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (images.image_mean, images.image_std))
        return (pixels.float().flatten(0, -4) * std + mean) * 255

    def _template(self, image, **options):
        settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        inputs = self.processor.apply_chat_template(messages(image), **settings, **options)
        for name in ("rows", "cols"):
            inputs.pop(name, None)
        return inputs


# --- building them ---------------------------------------------------------------------------------------------------


def build_sides(shape: Shape, device, dtype, attention: str = "sdpa", models: bool = True) -> dict[str, Side]:
    """Every side of one shape: ours three times over one model, transformers' twice over another.

    Qwen3-VL, which Argus is not a form of, has transformers' two alone.
    """
    device = torch.device(device)
    shared = {"device": device, "dtype": dtype}
    reference = build_reference(shape, device, dtype, attention) if models else None
    result = {}
    if shape.kind != "qwen3_vl":
        ours = build_ours(reference, shape) if models else None
        kinds = {OURS: {}, OURS_ONE_RESIZE: ONE_RESIZE, OURS_NATIVE: NATIVE}
        if shape.kind == "internvl":
            kinds.pop(OURS_ONE_RESIZE)  # InternVL's own tiling has one resize already
            kinds[OURS_NATIVE] = {"max_upscale": 1.0}
        for name, changes in kinds.items():
            result[name] = Side(name, our_processor(shape, **changes), ours, ours=True, **shared)
    for name, backend in ((TORCHVISION, "torchvision"), (PIL, "pil")):
        result[name] = Side(name, reference_processor(shape, backend), reference, **shared)
    return result


# --- processors -------------------------------------------------------------------------------------------------------


def reference_image_processor(shape: Shape, backend: str):
    """transformers' image processor of this backend ("torchvision" or "pil"), cutting the same tiles as ours."""
    names = _IMAGE_CLASSES[shape.kind, backend]
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if found is None:
        raise RuntimeError(f"transformers {transformers.__version__} has none of {', '.join(names)}.")
    mean, std = MEAN_STD[shape.kind]
    settings = {"image_mean": mean, "image_std": std, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    if shape.kind == "smolvlm":
        # Its own default of 1456 would make other tiles; the published checkpoints say 2048.
        settings |= {"size": {"longest_edge": shape.longest_edge}, "max_image_size": {"longest_edge": shape.tile_size}}
        settings |= {"resample": 1, "do_image_splitting": True, "do_pad": True}
    elif shape.kind == "internvl":
        settings |= {"size": {"height": shape.tile_size, "width": shape.tile_size}, "resample": 3}
        settings |= {"crop_to_patches": shape.max_tiles > 1, "min_patches": 1, "max_patches": shape.max_tiles}
    else:
        settings |= {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "resample": 3}
        settings |= {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    return found(**settings)


def reference_processor(shape: Shape, backend: str):
    """transformers' processor of this model over the offline tokenizer."""
    tokenizer, template = offline_tokenizer(shape.kind), CHAT_TEMPLATES[shape.kind]
    images = reference_image_processor(shape, backend)
    if shape.kind == "smolvlm":
        from transformers.models.smolvlm import processing_smolvlm

        # It only spells out numbers in video prompts, yet the processor refuses to be built without it.
        processing_smolvlm.num2words = getattr(processing_smolvlm, "num2words", None) or str
        videos = transformers.SmolVLMVideoProcessor(size={"longest_edge": shape.tile_size})
        settings = {"image_seq_len": shape.tokens_per_tile, "chat_template": template}
        pillow = reference_image_processor(shape, "pil")  # 4.57 lets nothing else in at the front door
        processor = transformers.SmolVLMProcessor(pillow, tokenizer, videos, **settings)
        processor.image_processor = images
        return processor
    if shape.kind == "qwen3_vl":
        if transformers.__version__.startswith("4."):  # it lets no other class in
            tokenizer = transformers.Qwen2TokenizerFast(
                tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
            )
        videos = transformers.Qwen3VLVideoProcessor()
        return transformers.Qwen3VLProcessor(images, tokenizer, videos, chat_template=template)
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    for name, token in {**names, "video_token": "<video>"}.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    settings = {"image_seq_length": shape.tokens_per_tile, "chat_template": template}
    return transformers.InternVLProcessor(images, tokenizer, transformers.InternVLVideoProcessor(), **settings)


def our_image_processor(shape: Shape, **changes) -> ArgusImageProcessor:
    """Tiles exactly as the published checkpoint's; `changes` are settings of ArgusImageProcessor."""
    mean, std = MEAN_STD[shape.kind]
    settings = {"tile_size": shape.tile_size, "image_mean": mean, "image_std": std}
    if shape.kind == "smolvlm":
        settings |= {"tiling": "longest_edge", "longest_edge": shape.longest_edge, "max_tiles": None, "resample": 1}
    else:
        settings |= {"tiling": "aspect_ratio", "max_tiles": shape.max_tiles, "resample": 3}
    return ArgusImageProcessor(**{**settings, **changes})


# The same 13 tiles of a 640x480 photo by one resize, with the paper's own filter; and as few tiles as lose nothing.
ONE_RESIZE = {"tiling": "aspect_ratio", "max_tiles": 12, "resample": 3}
NATIVE = {**ONE_RESIZE, "max_upscale": 1.0}


def our_processor(shape: Shape, **changes) -> ArgusProcessor:
    """ArgusProcessor over the same tokenizer; `changes` are settings of its image processor."""
    return ArgusProcessor(
        our_image_processor(shape, **changes),
        offline_tokenizer(shape.kind),
        chat_template=CHAT_TEMPLATES[shape.kind],
        image_token=IMAGE_TOKEN[shape.kind],
        image_seq_length=shape.tokens_per_tile,
        prompt_layout=shape.kind,
    )


def whole(sides: dict[str, Side], images, new_tokens: int, repeats: int, budget, warmup: int = 1) -> dict:
    """JPEG bytes to the id of the last of `new_tokens` tokens on the host."""

    def run(side):
        return lambda i: side.generate(side.request(images[i % len(images)]), new_tokens)

    device = next(iter(sides.values())).device
    return in_turn({name: run(side) for name, side in sides.items()}, repeats, device, warmup=warmup, budget=budget)
