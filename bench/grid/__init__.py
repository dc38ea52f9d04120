"""Whole models against everything else that runs them, on a grid: `python -m bench.grid`.

Models (six layers, two hidden layers of 128, eight bins) x features x batch x what (log_prob, sample, training step):
ours beside plain PyTorch, eager and compiled, the libraries and their accelerated models, and flowjax and madspace
where they are installed. All rows of a cell take turns in one process, after each was held against its truth.
"""
