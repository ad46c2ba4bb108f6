"""Training: rendered scenes, the tokenizer, the training loop and the scores of argus-nano."""
