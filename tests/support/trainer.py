"""Trainers on tiny models, and one of TRL's beside one of ours."""

from trl import DPOConfig, DPOTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer

from .models import make_tokenizer, save_model
from .oracle import gradients, perturb
from .rows import make_rows


def make_config(tmp_path, config_class=DMPOConfig, **options):
    defaults = {
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "beta": 0.5,
    }
    return config_class(str(tmp_path / "out"), **defaults | options)


def make_trainer(tmp_path, dataset, *, model=None, peft_config=None, eval_dataset=None, ref_model=None, **options):
    if model is None:
        model = save_model(tmp_path / "model")
    processing_class = None if isinstance(model, str) else make_tokenizer()
    return DMPOTrainer(
        model,
        ref_model=ref_model,
        args=make_config(tmp_path, **options),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=processing_class,
        peft_config=peft_config,
    )


def dpo_and_dmpo(tmp_path, *, name="llama", loss_type="sigmoid", our_loss_type=None, **options):
    """A DPOTrainer and a DMPOTrainer with the same weights on the same pairs."""
    rows = make_rows((1, 1, 1))
    pairs = rows.map(lambda row: {"rejected": row["rejected"][0]})
    folder = save_model(tmp_path / "model", name)
    smoothing = {"label_smoothing": 0.1} if loss_type in ("exo_pair", "robust", "aot", "aot_unpaired") else {}
    ours = make_config(
        tmp_path, loss_type=our_loss_type or loss_type, gradient_checkpointing=False, **smoothing, **options
    )
    fields = {name for name, f in DPOConfig.__dataclass_fields__.items() if f.init}
    shared = {k: v for k, v in vars(ours).items() if k in fields and not k.startswith("_")}
    theirs = DPOConfig(**shared | {"loss_type": [loss_type]})
    return (
        DPOTrainer(folder, args=theirs, train_dataset=pairs),
        DMPOTrainer(folder, args=ours, train_dataset=rows),
    )


def loss_gradients_and_metrics(trainer, batch=None):
    """Of one step away from the reference, on all rows unless a batch is given."""
    perturb(trainer.model)
    trainer.model.train()
    if batch is None:
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    return loss.item(), gradients(trainer.model), {k: v[-1] for k, v in trainer._metrics["train"].items()}
