"""A process that has imported everything and forks a child for each training run; test_interruptions.py kills them.

A line of standard input describes a run, a line of standard output how it ended (the child's exit code, negative for a
signal). A child kills itself where its description says, between two events of Python's profiler, which see every call
of a function, or, by a limit on the size of files, in the middle of a write.
"""

import json
import os
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from datasets import load_from_disk
from peft import LoraConfig
from support.forks import serve

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.training.checkpoints import last_whole_checkpoint


class WatchedTrainer(DMPOTrainer):
    """Counts the profiler's events of a phase, and dies at the one that `kill` names."""

    kill: dict = {}  # noqa: RUF012
    events: dict = {}  # noqa: RUF012
    loaded_from = None

    def _precompute_ref_logps(self, *args):
        with self._phase("precompute", 0):
            return super()._precompute_ref_logps(*args)

    def training_step(self, *args, **kwargs):
        with self._phase("step", self.state.global_step + 1):
            return super().training_step(*args, **kwargs)

    def _save_checkpoint(self, *args):
        with self._phase("save", self.state.global_step):
            super()._save_checkpoint(*args)

    def _load_from_checkpoint(self, checkpoint, *args):
        type(self).loaded_from = checkpoint
        super()._load_from_checkpoint(checkpoint, *args)

    @contextmanager
    def _phase(self, name, step):
        here = (self.kill.get("phase"), self.kill.get("step")) == (name, step)
        last = self.kill.get("event") if here else None
        count = 0

        def on_event(*_):
            nonlocal count
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

        if here and "bytes" in self.kill:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.kill["bytes"], resource.RLIM_INFINITY))
        sys.setprofile(on_event)
        try:
            yield
        finally:
            sys.setprofile(None)
            self.events[f"{name} {step}"] = count


def train(folder, kill, lora=False, **options):
    """A run, or what is left of it, in a folder that holds the rows; the model lies beside it."""
    folder = Path(folder)
    WatchedTrainer.kill = kill
    args = DMPOConfig(
        str(folder / "out"),
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        beta=0.5,
        **options,
    )
    trainer = WatchedTrainer(
        str(folder.parent / "model"),
        args=args,
        train_dataset=load_from_disk(folder / "rows"),
        peft_config=LoraConfig(r=4, lora_dropout=0.2, task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train(resume_from_checkpoint=True if last_whole_checkpoint(args.output_dir) else None)
    trainer.save_model()
    found = {"loaded_from": WatchedTrainer.loaded_from, "events": WatchedTrainer.events}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    serve(train)
