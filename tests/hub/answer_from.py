"""A stranger's script: greedy answers from hub folders, and on request one of them saved again.

answer_from.py [--save FOLDER] [--report FILE] FOLDER...
"""

import argparse
import json
import traceback
from pathlib import Path

import transformers
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--save", type=Path)
parser.add_argument("--report", type=Path)
parser.add_argument("folders", type=Path, nargs="+")
arguments = parser.parse_args()
PICTURE = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is this?"}]}
]


def answer(folder: Path) -> dict:
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    inputs = processor.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    if arguments.save:
        model.save_pretrained(arguments.save)
        processor.save_pretrained(arguments.save)
    return {"input_ids": inputs["input_ids"].tolist(), "new_ids": ids[:, inputs["input_ids"].shape[1] :].tolist()}


report = {}
for folder in arguments.folders:
    result = {"version": transformers.__version__, "error": None}
    try:
        result |= answer(folder)
    except Exception:
        if not arguments.report:
            raise
        result["error"] = traceback.format_exc()
    report[folder.name] = result
if arguments.report:
    arguments.report.write_text(json.dumps(report), encoding="utf-8")
