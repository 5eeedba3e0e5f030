"""Names of the subcommands and what each does, in the order of a project."""

COMMANDS = {
    "prepare": "turn raw files into a folder of datasets for training and evaluation",
    "leaks": "look for shortcuts and for test rows in the training data",
    "estimate": "estimate tokens, FLOPs and memory of a training step, from a model's config alone",
    "train": "train with DMPO, with the options of `trl dpo`",
    "evaluate": "rank the candidates of held-out users with a model",
    "recommend": "recommend from the whole catalogue, for one user or a file of them",
    "explain": "show which items of a history carry a recommendation",
    "env": "print versions and hardware, for a bug report",
    "completion": "print a script that completes commands and options in a shell",
}
