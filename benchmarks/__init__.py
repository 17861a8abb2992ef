"""Measurements of `sparse_mixer` beside TensorFlow and OpenVINO. Run `python -m benchmarks --help`."""
