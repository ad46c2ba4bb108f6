"""Tiny byte-level BPE tokenizers, trained offline in milliseconds, and processors over them, shared by all tests.

Three kinds, each with the special tokens and the pre-tokenization of its model family: "native" (Argus), "smolvlm"
and "internvl" (Qwen). `build_reference_processor` gives transformers' own SmolVLMProcessor or InternVLProcessor over
the same tokenizer, to compare with.
"""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.efficiency import offline_tokenizer as published
from processing_argus import ArgusImageProcessor, ArgusProcessor, add_location_tokens

KINDS = ("native", "smolvlm", "internvl")
TILE_SIZE = 32
IMAGE_SEQ_LENGTH = 4
CORPUS = [
    "User: Describe the image. Describe and locate every object.\nAssistant: A red car and two small dogs near a tree.",
    "What is this? A cat. Where is the dog? The dog is in the grass, 12 of 34. Detect: a red car, a dog.",
    "In this image, we see a house and a tree; can you say what is in the second image?\n\nIt isn't a cat, it's a dog.",
]
SPECIAL_TOKENS = {
    **published.SPECIAL_TOKENS,
    "native": ["<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<image_start>", "<image_end>"],
}
NAMED_TOKENS = {
    **published.NAMED_TOKENS,
    "native": {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<pad>"},
}
IMAGE_TOKEN = {**published.IMAGE_TOKEN, "native": "<image>"}
# The templates of the published SmolVLM2 and InternVL3 (-hf) checkpoints, videos left out. Native: the processor's own.
CHAT_TEMPLATES = {
    "native": None,
    "smolvlm": published.CHAT_TEMPLATES["smolvlm"],
    "internvl": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
        "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
    ),
}


@cache
def _tokenizer_json(kind: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "internvl")
    if kind == "internvl":
        tokenizer.normalizer = normalizers.NFC()
        first = pre_tokenizers.Split(Regex(published.QWEN_SPLIT), "isolated")
    else:
        first = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS[kind]]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special_tokens) + 400,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def build_tokenizer(kind: str = "native", num_location_bins: int | None = None):
    """A new fast tokenizer of about 400 tokens; with `num_location_bins` the location tokens are added."""
    named = NAMED_TOKENS[kind]
    extra = [t for t in SPECIAL_TOKENS[kind] if t not in named.values()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(kind)), additional_special_tokens=extra, **named
    )
    if num_location_bins is not None:
        add_location_tokens(tokenizer, num_location_bins)
    return tokenizer


def build_image_processor(kind: str = "native", **kwargs) -> ArgusImageProcessor:
    """Tiles of 32 pixels: the paper's policy for "native" and "internvl", SmolVLM's for "smolvlm"."""
    if kind == "smolvlm":
        settings = {"tiling": "longest_edge", "longest_edge": 4 * TILE_SIZE, "max_tiles": None}
    else:
        settings = {"tiling": "aspect_ratio", "max_tiles": 6}
    return ArgusImageProcessor(**{"tile_size": TILE_SIZE, **settings, **kwargs})


def build_processor(
    kind: str = "native", num_location_bins: int | None = 100, image_processor=None, tokenizer=None, **kwargs
) -> ArgusProcessor:
    """A whole tiny ArgusProcessor: 4 image tokens a tile; 100 location bins on the native tokenizer, else none."""
    if kind != "native":
        num_location_bins = None
    if tokenizer is None:
        tokenizer = build_tokenizer(kind, num_location_bins)
    settings = {
        "chat_template": CHAT_TEMPLATES[kind],
        "image_token": IMAGE_TOKEN[kind],
        "image_seq_length": IMAGE_SEQ_LENGTH,
        "prompt_layout": kind,
        "num_location_bins": num_location_bins,
    }
    return ArgusProcessor(image_processor or build_image_processor(kind), tokenizer, **{**settings, **kwargs})


def build_reference_processor(kind: str):
    """transformers' own processor over the same tokenizer and tile size: SmolVLMProcessor or InternVLProcessor."""
    if kind == "smolvlm":
        from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor
        from transformers.models.smolvlm import processing_smolvlm

        # It only spells out numbers in video prompts, yet the processor refuses to be built without it.
        processing_smolvlm.num2words = processing_smolvlm.num2words or str
        image_processor = SmolVLMImageProcessor(
            size={"longest_edge": 4 * TILE_SIZE}, max_image_size={"longest_edge": TILE_SIZE}
        )
        video_processor = SmolVLMVideoProcessor(size={"longest_edge": TILE_SIZE})
        return SmolVLMProcessor(
            image_processor,
            build_tokenizer(kind),
            video_processor,
            image_seq_len=IMAGE_SEQ_LENGTH,
            chat_template=CHAT_TEMPLATES[kind],
        )
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tokenizer = build_tokenizer(kind)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE_SIZE, "width": TILE_SIZE}, crop_to_patches=True, min_patches=1, max_patches=6
    )
    return InternVLProcessor(
        image_processor,
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=IMAGE_SEQ_LENGTH,
        chat_template=CHAT_TEMPLATES[kind],
    )
