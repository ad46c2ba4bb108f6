"""Task calls over `generate()`. (Prompts first; the calls follow.)"""

TASK_PROMPTS = {
    "caption": "Describe the image.",
    "detect": "Detect: {phrases}.",
    "dense_caption": "Describe and locate every object.",
}


class ArgusTasksMixin:
    pass
