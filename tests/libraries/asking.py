"""The chat that the tests of this folder ask with."""

QUESTION = "Describe and locate every object."


def chat(*images, question: str = QUESTION) -> list[dict]:
    content = [image if isinstance(image, dict) else {"type": "image", "image": str(image)} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
