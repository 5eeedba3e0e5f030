"""The claims of DMPO (arXiv 2405.16127), put to the test: cells that are computed once, and a report of them.

    PYTHONPATH=benchmarks python -m paper run benchmarks/paper/learning.yaml
    PYTHONPATH=benchmarks python -m paper report benchmarks/results/learning

A config names cells: a data set, a number of training users, a method, a seed. Data flow one way: `sources` reads raw
files, `users` (or `pairs`, for the DMPO authors' own rows) splits and draws, `training` trains, `ranking` ranks,
`cells` writes one JSON file per cell, `tables`, `pair_tables`, `pictures` and `page` make the report of the files
alone. `tuning` searches for settings on validation users and writes a config of cells.
"""
