"""The compatibility matrix: which models of timm, torchvision and transformers go through which stages.

`fxprune.examples` gives what a model is tried with, `stages` what is done with it and what is measured. `child` is
the process in which that happens; `runner` starts such processes, holds them to their limits and turns each into a
row. `plan` says which models, `results` what a row is of (`fxprune.rows` keeps them), and `table` shows them;
`command` is the command line.
"""
