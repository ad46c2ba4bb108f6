"""Evaluation (`argus evaluate`): dense-caption mAP, detection, captions, questions, held-out scenes.

Metrics are plain functions of predictions and ground truth, one small file each with its official rule in the
docstring; `models.py` is what answers, `predictions.py` what is kept of the answers, `command.py` the command.
"""
