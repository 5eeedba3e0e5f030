"""The scoring head leaves everything else that a model does as it was."""

import torch
from support import make_model

from dmpo_trl.modeling.scoring_head import add_scoring_head


def test_generation_from_padded_prompts_stays_as_it_was():
    # GPT-2 has absolute positions, which `generate` prepares only where the signature of forward asks for them
    ids = torch.tensor([[0, 0, 0, 7, 8, 9], [10, 11, 12, 13, 14, 15]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 5, "do_sample": False}
    model = make_model("gpt2")
    model.generation_config.pad_token_id = 0
    before = model.generate(**inputs)
    add_scoring_head(model)
    assert torch.equal(model.generate(**inputs), before)
