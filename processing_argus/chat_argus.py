"""From chat messages to prompts: the native template (Section 4.1), images taken out, literal markers made harmless.

A marker or a special token inside the text of a message is text. So before rendering, a sentinel character (one
that occurs nowhere in the chat) is put behind the first character of each of them; the prompt is later cut at the
sentinels and the pieces tokenized on their own. No such token can arise, and the text stays as it was.
"""

import os
import re
from functools import lru_cache

from transformers.utils.chat_template_utils import render_jinja_template

from .locations_argus import is_location_token
from .prompt_layout_argus import ImageRuns

try:  # transformers renders with it, yet does not require it
    from jinja2 import Environment, meta
    from jinja2.ext import Extension
except ImportError:
    meta, Extension = None, object

# "{bos}User:<image>What is this?{eos}\nAssistant: A cat.{eos}\n", which is SmolVLM's spacing: "User:" before an image,
# "User: " before text. What the assistant says, the space before it and the end token are marked (Equation 1).
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set content = message['content'] %}"
    "{{ message['role'] | capitalize }}:"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% if content is string %} {{ content }}{% else %}"
    "{% if not content or content[0]['type'] != 'image' %} {% endif %}"
    "{% for item in content %}{% if item['type'] == 'image' %}<image>{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ eos_token }}{% endgeneration %}"
    "{% else %}"
    "{% if content is string %} {{ content }}{% else %}"
    "{% if not content or content[0]['type'] != 'image' %} {% endif %}"
    "{% for item in content %}{% if item['type'] == 'image' %}<image>{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}{{ eos_token }}"
    "{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

IMAGE_KEYS = ("image", "url", "path", "base64")
# Noncharacters, which Unicode keeps for a program's own use; private-use characters should a chat hold all of those.
_SENTINELS = (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))


class MarkerGuard:
    """Puts a sentinel into every one of `tokens` that a text holds, and behind a text's end that begins one of them."""

    def __init__(self, tokens):
        self.tokens = tuple(sorted({t for t in tokens if len(t) > 1}))
        # A look-ahead finds overlapping tokens too: cutting one must not leave another whole.
        self._pattern = (
            re.compile("(?s)(?=(?:" + "|".join(map(re.escape, self.tokens)) + ")).") if self.tokens else None
        )
        self._prefixes = {t[:n] for t in self.tokens for n in range(1, len(t))}
        self._longest = max(map(len, self._prefixes), default=0)

    def cut(self, text: str, sentinel: str) -> str:
        """Cuts the tokens that stand in the text."""
        return self._pattern.sub(lambda match: match.group() + sentinel, text) if self._pattern else text

    def guard(self, text: str, sentinel: str) -> str:
        """Cuts them, and those that would arise with the text behind it too: "<ima" and then "ge>"."""
        is_prefix = any(text[-n:] in self._prefixes for n in range(1, min(self._longest, len(text)) + 1))
        return self.cut(text, sentinel) + sentinel * is_prefix


def message_guards(runs: ImageRuns, num_tokens: int) -> dict:
    """Who may write which token as structure: the assistant its location tokens, nobody anything else.

    Structure is every special token of the tokenizer and each added token of its images. Returns the guard of
    "assistant" and, under None, everyone else's. They hold as long as the tokenizer has `num_tokens` tokens.
    """
    layout, tokenizer = runs.layout, runs.tokenizer
    structure = "".join([runs.image_token, *layout.literals(9, 9, True), *layout.literals(1, 1, False)])
    added = tokenizer.added_tokens_decoder.values()
    boxes = {token.content for token in added if is_location_token(token.content)}
    tokens = {token.content for token in added if token.special or token.content in structure}
    tokens |= {*tokenizer.all_special_tokens}
    return {"assistant": MarkerGuard(tokens - boxes), None: MarkerGuard(tokens | boxes)}


def resolve_template(own: str | dict | None, chat_template: str | None) -> str:
    """The template to render: the one given (a template, or the name of one of `own`), else the processor's own."""
    if isinstance(own, dict):
        if chat_template is None and "default" not in own:
            raise ValueError(f"The processor's chat templates are {sorted(own)}: name one with chat_template=.")
        return own.get(chat_template or "default", chat_template)
    if chat_template is None and own is None:
        raise ValueError("The processor has no chat template: set processor.chat_template or pass chat_template=.")
    return chat_template or own


class _GenerationTag(Extension):
    """Lets {% generation %} be parsed, transformers' own tag."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


@lru_cache
def template_variables(template: str) -> frozenset[str]:
    """The variables that a template reads and does not set itself."""
    if meta is None:
        raise ImportError("Chat templates need jinja2: pip install jinja2.")
    environment = Environment(extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    return frozenset(meta.find_undeclared_variables(environment.parse(template)))


def split_conversations(conversation) -> list[list[dict]]:
    """One conversation (a list of messages) or a batch of them -> a list of conversations."""
    if hasattr(conversation, "messages"):
        conversation = conversation.messages
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError("A conversation is a non-empty list of messages, a batch a non-empty list of conversations.")
    if isinstance(conversation[0], dict):
        return [list(conversation)]
    conversations = [list(getattr(c, "messages", c)) for c in conversation]
    for i, messages in enumerate(conversations):
        if not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError(
                f"Conversation {i} is not a non-empty list of messages like {{'role': ..., 'content': ...}}."
            )
    return conversations


def take_images(messages: list[dict]) -> tuple[list[dict], list]:
    """Splits messages into copies without image data and their images in order (None where an item names no source).

    Raises ValueError for content that this model cannot read: videos, audio, unknown types, two sources of one image.
    """
    bare, images = [], []
    for i, message in enumerate(messages):
        if "role" not in message:
            raise ValueError(f"Message {i} has no role: {sorted(message)}.")
        message = {key: value for key, value in message.items() if value is not None}
        content = message.get("content", "")
        if not isinstance(content, (str, list, tuple)):
            raise ValueError(
                f"The content of message {i} is a {type(content).__name__}: give a string or a list of items."
            )
        if not isinstance(content, str):
            content = [_take_item(item, images, where=f"Message {i}, item {j}") for j, item in enumerate(content)]
        bare.append({**message, "content": content})
    return bare, images


def _take_item(item, images: list, where: str) -> dict:
    if isinstance(item, str):
        return {"type": "text", "text": item}
    # Data sets fill a table's other columns with None: {"type": "text", "text": "...", "image": None}.
    item = {key: value for key, value in dict(item).items() if value is not None}
    kind = item.get("type") or next((k for k in ("text", "image_url", *IMAGE_KEYS) if k in item), None)
    if kind == "text" and isinstance(item.get("text"), str):
        return {"type": "text", "text": item["text"]}
    if kind == "image_url":  # the OpenAI spelling
        url = item.get("image_url")
        item, kind = {"url": url.get("url") if isinstance(url, dict) else url}, "image"
    if kind == "image" or kind in IMAGE_KEYS:
        sources = [key for key in IMAGE_KEYS if item.get(key) is not None]
        if len(sources) > 1:
            raise ValueError(f"{where} names {len(sources)} sources for one image: {', '.join(sources)}. Give one.")
        images.append(_image_source(sources[0], item[sources[0]]) if sources else None)
        return {"type": "image"}
    raise ValueError(f"{where} has type {kind!r}: ArgusVLM reads text and images, {{'type': 'text', 'text': ...}} and "
                     f"{{'type': 'image', {'|'.join(IMAGE_KEYS)}: ...}}.")  # fmt: skip


def _image_source(key: str, value):
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        return "data:image/unknown;base64," + value
    return os.fspath(value) if key == "path" else value


def render(
    conversations,
    chat_template,
    guards,
    *,
    tools,
    documents,
    add_generation_prompt,
    continue_final_message,
    spans,
    variables,
) -> tuple[list[str], list[list[tuple[int, int]]], str]:
    """Renders conversations (already without images) and returns prompts, assistant spans and the sentinel.

    `guards` maps a role to its MarkerGuard, None being everyone else's. With `spans` the template's {% generation %}
    marks come back as character spans of each prompt, sentinels included.
    """
    known = list(_strings([conversations, documents, tools, variables, chat_template]))
    sentinel = next(chr(c) for c in _SENTINELS if not any(chr(c) in s for s in known))
    as_text = "is string" in chat_template or not re.search(r"\[\s*['\"]type['\"]\s*\]|\.type\b", chat_template)
    guarded = []
    for messages in conversations:
        guarded.append([])
        for message in messages:
            guard = guards.get(message["role"], guards[None])
            message = _guard_all(message, guard, sentinel)
            # A template that walks over content items would silently drop a plain string.
            if isinstance(message["content"], str) and not as_text:
                message["content"] = [{"type": "text", "text": message["content"]}]
            guarded[-1].append(message)
    prompts, generation_spans = render_jinja_template(
        conversations=guarded,
        tools=tools,
        documents=_guard_all(documents, guards[None], sentinel),
        chat_template=chat_template,
        return_assistant_tokens_mask=spans,
        continue_final_message=continue_final_message,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return prompts, generation_spans, sentinel


def _guard_all(value, guard: MarkerGuard, sentinel: str):
    if isinstance(value, str):
        return guard.guard(value, sentinel)
    if isinstance(value, dict):
        # Templates compare roles and types: they are cut only if they hold a whole token.
        return {
            key: guard.cut(item, sentinel) if key in ("role", "type") and isinstance(item, str)
            else _guard_all(item, guard, sentinel)
            for key, item in value.items()
        }  # fmt: skip
    if isinstance(value, (list, tuple)):
        return [_guard_all(item, guard, sentinel) for item in value]
    return value


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
