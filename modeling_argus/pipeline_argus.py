"""`pipeline("dense-captioning", model=..., trust_remote_code=True)`: boxes and captions in the form of transformers'
detection pipelines.

`custom_pipelines` in an exported config.json names the class. A thin layer over `model.dense_caption`, which batches.
"""

from transformers import Pipeline


class ArgusDenseCaptioningPipeline(Pipeline):
    """Finds and describes every object of each image.

    Takes an image, a list, a generator or a data set of them, each in any form that the processor takes (PIL, path,
    URL, bytes, array). `batch_size` images are answered at a time; regions of a score below `threshold` (0) are left
    out; what else is given goes to `model.dense_caption` (`max_new_tokens`, `max_tiles`, `num_beams`, ...).

    For each image a list of {"label": str, "score": float, "box": {"xmin", "ymin", "xmax", "ymax"}}, in pixels of the
    original image, floats. What the model wrote that is no region is left out; `model.dense_caption` reports it.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(self, threshold=None, **options):
        return {}, options, {} if threshold is None else {"threshold": threshold}

    def preprocess(self, image):
        return {"images": [image]}  # in a list, so that a batch of tensors is not stacked

    def _forward(self, inputs, **options):
        batched = isinstance(inputs["images"][0], list)
        images = [image for row in inputs["images"] for image in row] if batched else inputs["images"]
        found = self.model.dense_caption(images, processor=self.processor, batch_size=len(images), **options)
        return {"regions": found if batched else found[0]}

    def postprocess(self, outputs, threshold=0.0):
        regions = outputs["regions"]
        return [
            {"label": label, "score": score, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
            for label, score, box in zip(regions["captions"], regions["scores"].tolist(), regions["boxes"].tolist())
            if score >= threshold
        ]
