"""What holds for all tests."""

import logging

import pytest
import torch
import trl.trainer.utils
from hypothesis import HealthCheck, settings

from dmpo_trl.modeling.logprobs import KERNEL_NEEDS_TRITON

# Assertions of the helpers show their values as those of tests do
pytest.register_assert_rewrite("support")

# Nothing is timed in tests: a busy machine is no failure. Hypothesis draws the same inputs each time, so that nobody's
# change fails for what another's brought; `make fuzz` draws others
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **UNTIMED)
settings.register_profile("other", **UNTIMED)
settings.load_profile("same")


class PlainLogProb:
    """TRL's `ChunkedLogProbFunction` by the definition, from whole logits."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs):
        logits = torch.nn.functional.linear(hidden, weight, bias).float() * logit_scale
        logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
        logps = logits.log_softmax(-1)
        optional = {
            "entropy": lambda: -(logps.exp() * logps).sum(-1),
            "log_sum_sq_probs": lambda: (2 * logps).logsumexp(-1),
            "mean_logits": lambda: logits.mean(-1),
            "is_top1": lambda: logits.argmax(-1) == targets,
        }
        values = (compute() if name in outputs else None for name, compute in optional.items())
        return logps.gather(-1, targets[:, None]).squeeze(-1), *values


# The log-probs of TRL 1.15 exist in Triton only, so its DPOTrainer, an oracle here, trains on no CPU
if KERNEL_NEEDS_TRITON and not torch.cuda.is_available():
    trl.trainer.utils._ChunkedLogProbFunction = PlainLogProb


@pytest.fixture(autouse=True)
def _log_level():
    """A command that a test runs in its own process sets the package's log level: it is no other test's."""
    ours = logging.getLogger("dmpo_trl")
    level = ours.level
    yield
    ours.setLevel(level)
