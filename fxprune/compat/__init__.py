"""The compatibility matrix: which models of timm, torchvision and transformers go through which stages.

`inputs` gives what a model is tried with, `stages` what is done with it and what is measured. `child` is the
process in which that happens; `runner` starts such processes, holds them to their limits and turns each into a
row. `plan` says which models, `results` keeps the rows, and `table` shows them.
"""
