"""Byte-level BPE tokenizers trained on the spot, with the special tokens and chat templates of the published models.

No download is needed, and both sides of a comparison share one. The prompt's words are single tokens, as in the
published vocabularies; the token count of the text may still differ by a few of hundreds.
"""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# LMMs-Eval's prompt for COCO captioning, the requests of Section 3.2.
PROMPT = "Provide a one-sentence caption for the provided image."

CORPUS = [
    PROMPT,
    "Describe the image. User: Assistant: user assistant system You are a helpful assistant.",
    "A red car and two small dogs near a tree; a house, a street and three people in the background of the photo.",
]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = {
    "smolvlm": [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"),
        *("<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))),
    ],
    "internvl": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "qwen3_vl": [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|image_pad|>", "<|video_pad|>"),
    ],
}
NAMED_TOKENS = {
    "smolvlm": {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"},
    "internvl": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen3_vl": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
IMAGE_TOKEN = {"smolvlm": "<image>", "internvl": "<IMG_CONTEXT>", "qwen3_vl": "<|image_pad|>"}
_TURNS = (
    "{{% for message in messages %}}{{{{'<|im_start|>' + message['role'] + '\n'}}}}"
    "{{% for content in message['content'] %}}{{% if content['type'] == 'image' %}}{{{{ '{image}' }}}}"
    "{{% elif content['type'] == 'text' %}}{{{{ content['text'] }}}}{{% endif %}}{{% endfor %}}"
    "{{{{'<|im_end|>\n'}}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{'<|im_start|>assistant\n' }}}}{{% endif %}}"
)
# The published templates, without system messages, videos and tools.
CHAT_TEMPLATES = {
    "smolvlm": (
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "internvl": _TURNS.format(image="<IMG_CONTEXT>\n"),
    "qwen3_vl": _TURNS.format(image="<|vision_start|><|image_pad|><|vision_end|>"),
}


@cache
def _tokenizer_json(kind: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smolvlm")
    if kind == "smolvlm":
        first = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS[kind]]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special_tokens) + 700,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def offline_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A new fast tokenizer of fewer than 900 tokens for one of transformers' model kinds."""
    named = NAMED_TOKENS[kind]
    extra = [t for t in SPECIAL_TOKENS[kind] if t not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(kind)),
        additional_special_tokens=extra,
        model_input_names=["input_ids", "attention_mask"],
        **named,
    )
