"""`argus annotate`: a task of the model on thousands of images, written to files of rows, resumable at any point.

What flows: `inputs` lists items, `feeding` reads what only one process can, `workers` decode and tile in processes,
`batching` joins images of like tile counts, `annotator` asks the model, `shards` keeps rows. `run` is the loop;
`ray_engine` stands in for the middle on many machines; `coco` exports boxes. Nothing heavy is imported here.
"""
