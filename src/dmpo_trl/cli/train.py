"""`dmpo-trl train`: training with the options of `trl dpo`."""

from __future__ import annotations

from ._train_options import argument_types
from .launch import accelerate_options, is_launched, launch
from .options import Parser


def make_parser() -> Parser:
    """Return the command's parser."""
    example = (
        "dmpo-trl train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name data --output_dir outputs/dmpo\n"
        "dmpo-trl train --config dmpo.yaml --use_peft --lora_r 16 --load_in_4bit\n"
        "\n"
        "on two GPUs, either way; --accelerate_config takes a file or the name of one of TRL's:\n"
        "dmpo-trl train --config dmpo.yaml --num_processes 2\n"
        "dmpo-trl train --config dmpo.yaml --accelerate_config fsdp2\n"
        "accelerate launch --num_processes 2 -m dmpo_trl.cli train --config dmpo.yaml"
    )
    return Parser("train", *argument_types(), example=example)


def run(arguments: list[str]) -> None:
    """Train as the arguments say. Options of `accelerate launch` among them launch the processes, as in `trl dpo`."""
    parser = make_parser()
    parsed = parser.parse_values(arguments, accelerate_options())
    if (parsed.foreign_from_file or parsed.foreign_from_flags) and not is_launched():
        launch("train", arguments, parsed.foreign_from_file, parsed.foreign_from_flags)
        return

    from ..training.checkpoints import last_whole_checkpoint
    from ._training import train

    script, config, model, mixture, options = parser.instances(parsed)
    if options.resume:
        if config.resume_from_checkpoint is not None:
            raise ValueError(
                "--resume takes the last whole checkpoint of --output_dir, --resume_from_checkpoint the one that it "
                "names: pass one of the two."
            )
        config.resume_from_checkpoint = last_whole_checkpoint(config.output_dir)
    elif (choice := str(config.resume_from_checkpoint).lower()) in ("true", "false"):  # as `Trainer.train` takes it
        config.resume_from_checkpoint = last_whole_checkpoint(config.output_dir) if choice == "true" else None
        if choice == "true" and config.resume_from_checkpoint is None:
            raise ValueError(
                f"`resume_from_checkpoint` is true, and {config.output_dir} has no whole checkpoint: leave it out, or "
                "pass --resume, which begins anew where there is none."
            )
    train(script, config, model, mixture, options)
