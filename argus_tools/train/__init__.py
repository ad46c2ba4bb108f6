"""Training (`argus train`): samples of many sources, batches, transformers' Trainer in stages, argus-nano's shape.

`config.py` is what a run is told, `run.py` what it does; `readers/` and `mixture.py` give the samples, `collate.py` the
batches, `training_model.py` the losses. `lora.py` is for users of PEFT and TRL.
"""
