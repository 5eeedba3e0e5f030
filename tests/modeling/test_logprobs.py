"""The fused gather against float64 log-softmax over whole logits, on every path and at every tile size."""

import importlib.util
import itertools
import os
import subprocess
import sys
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dmpo_trl.modeling import logprobs
from dmpo_trl.modeling.logprobs import TokenLogProbs, _scan, _statistics, gather_logprobs
from dmpo_trl.modeling.logprobs._autograd import FrozenHeadLogProb, OneTileLogProb
from dmpo_trl.modeling.logprobs._scan import Head

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
PATHS = ("no_grad", "frozen", "one_tile", "recompute")
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def tiles(tokens, vocabulary):
    return mock.patch.multiple(logprobs, CPU_TILE=(tokens, vocabulary), GPU_TILE=(tokens, vocabulary))


class Problem:
    """Random hidden states, head and targets, and the same in float64 for the oracle."""

    def __init__(
        self, shape, *, bias=True, scale=1.0, softcap=None, dtype=torch.float32, device="cpu", spread=2.0
    ):  # shape: tokens S, vocabulary V, hidden size H
        S, V, H = shape
        g = torch.Generator().manual_seed(S * 1009 + V * 31 + H)
        self.hidden = (torch.randn(S, H, generator=g) * spread).to(device, dtype)
        self.weight = torch.randn(V, H, generator=g).to(device, dtype)
        self.bias = torch.randn(V, generator=g).to(device, dtype) if bias else None
        self.targets = torch.randint(0, V, (S,), generator=g).to(device)
        self.grad = torch.randn(S, generator=g).to(device)
        self.scale, self.softcap = scale, softcap

    def leaves(self, path):
        trainable = {"no_grad": (), "frozen": (0,), "one_tile": (0, 1, 2), "recompute": (0, 1, 2)}[path]
        inputs = (self.hidden, self.weight, self.bias)
        return [None if x is None else x.detach().clone().requires_grad_(i in trainable) for i, x in enumerate(inputs)]

    def run(self, path, outputs=OUTPUTS):
        """Outputs and gradients by hidden, weight and bias, in this path's way."""
        hidden, weight, bias = leaves = self.leaves(path)
        with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 0 if path == "recompute" else 2**25):
            result = gather_logprobs(
                hidden,
                weight,
                self.targets,
                bias=bias,
                logit_scale=self.scale,
                softcap=self.softcap,
                outputs=outputs,
            )
        if path != "no_grad":
            (result.log_probs * self.grad).sum().backward()
        return result, [None if x is None else x.grad for x in leaves]

    def oracle(self):
        hidden, weight, bias = leaves = [
            None if x is None else x.detach().double().requires_grad_() for x in (self.hidden, self.weight, self.bias)
        ]
        z = hidden @ weight.T
        z = (z if bias is None else z + bias) * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        log_p = torch.log_softmax(z, dim=-1)
        log_probs = log_p[torch.arange(len(z)), self.targets]
        (log_probs * self.grad).sum().backward()
        with torch.no_grad():
            result = TokenLogProbs(
                log_probs=log_probs.detach(),
                entropy=-(log_p.exp() * log_p).sum(-1),
                mean_logits=z.mean(-1),
                is_top1=z.argmax(-1) == self.targets,
                log_sum_sq_probs=(2 * log_p).logsumexp(-1),
            )
        return result, [None if x is None else x.grad for x in leaves]

    def check(self, path, rtol=1e-4, atol=2e-5):
        result, grads = self.run(path)
        expected, expected_grads = self.oracle()
        for name in OUTPUTS:
            value, wanted = getattr(result, name).detach(), getattr(expected, name)
            if name == "is_top1":
                assert torch.equal(value, wanted)
            else:
                assert_close(value.double(), wanted, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        trained = {"no_grad": 0, "frozen": 1}.get(path, 3)
        for i, (grad, wanted) in enumerate(zip(grads, expected_grads, strict=True)):
            if i >= trained or wanted is None:
                assert grad is None
            else:
                scale = max([1.0, *wanted.abs().flatten().tolist()])  # sums cancel: errors are relative to the largest
                assert_close(grad.double(), wanted, rtol=rtol, atol=atol * scale)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tile", [(1024, 2048), (4, 16), (3, 1), (11, 37), (1, 36)], ids=str)
def test_values_and_gradients(path, tile):
    for bias, scale, softcap in itertools.product((False, True), (1.0, 0.25, -1.5), (None, 3.0)):
        with tiles(*tile):
            Problem((11, 37, 5), bias=bias, scale=scale, softcap=softcap).check(path)


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    shape=st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(1, 6)),
    tile=st.tuples(st.integers(1, 10), st.integers(1, 41)),
    bias=st.booleans(),
    softcap=st.sampled_from((None, 5.0, 30.0)),  # a cap that saturates in float32 makes ties
)
def test_any_shape(path, shape, tile, bias, softcap):
    with tiles(*tile):
        Problem(shape, bias=bias, softcap=softcap).check(path)


@pytest.mark.parametrize("path", ["no_grad", "frozen", "one_tile"])
def test_float64_is_exact(path):
    with tiles(4, 16):
        Problem((11, 37, 5), scale=0.5, softcap=4.0, dtype=torch.float64).check(path, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    p = Problem((5, 13, 3), dtype=torch.float64)
    hidden, weight, bias = p.leaves("one_tile")
    head = Head(weight.detach(), bias.detach(), 0.5, 2.0)
    assert torch.autograd.gradcheck(lambda h: FrozenHeadLogProb.apply(h, head, p.targets, (), (2, 4))[0], hidden)
    assert torch.autograd.gradcheck(
        lambda h, w, b: OneTileLogProb.apply(h, w, b, 0.5, 2.0, p.targets, ())[0], (hidden, weight, bias)
    )


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16(path):
    # The logits are rounded to 8 bits, as the model's own would be: |z| < 16 gives at most 2^-5 each in log-probs.
    p = Problem((64, 300, 8), dtype=torch.bfloat16, spread=1.0)
    with tiles(32, 128):
        result, grads = p.run(path)
    expected, expected_grads = p.oracle()
    assert result.log_probs.dtype == result.entropy.dtype == torch.float32
    assert_close(result.log_probs.detach().double(), expected.log_probs, rtol=0, atol=2**-4)
    assert_close(result.entropy.double(), expected.entropy, rtol=0, atol=2**-4)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        if grad is not None:
            assert grad.dtype == torch.bfloat16
            assert (grad.double() - wanted).norm() < 2**-6 * wanted.norm()


@pytest.mark.parametrize("path", PATHS)
def test_autocast_computes_in_its_dtype_and_accumulates_in_float32(path):
    p = Problem((20, 100, 8), softcap=5.0)
    rounded = Problem((20, 100, 8), softcap=5.0, dtype=torch.bfloat16)
    with tiles(8, 32):
        expected, expected_grads = rounded.run(path)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # also around the backward pass
            result, grads = p.run(path)
    for name in OUTPUTS:
        assert_close(getattr(result, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        if grad is not None:
            assert grad.dtype == torch.float32
            assert (grad - wanted).norm() < 2**-7 * wanted.norm()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_extreme_logits(path, softcap):
    weight = torch.tensor([[1e4], [-1e4], [0.0], [1e4], [-1e4], [9990.0], [1.0]])
    p = Problem((7, 7, 1), bias=False, softcap=softcap)
    p.weight, p.targets = weight, torch.arange(7)
    p.hidden = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.0]).unsqueeze(1)
    with tiles(4, 2):
        result, grads = p.run(path)
    expected, expected_grads = p.oracle()
    for name in OUTPUTS:
        assert_close(getattr(result, name).double(), getattr(expected, name).double(), rtol=1e-6, atol=5e-3)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        if grad is not None:
            # TRL's backward takes p = exp(z - log_z) from a log_z of 1e4 rounded to 1e-3, times a weight of 1e4.
            assert_close(grad.double(), wanted, rtol=1e-4, atol=5.0 if path == "recompute" else 1e-2)


@pytest.mark.parametrize("path", PATHS)
def test_no_tokens_still_gives_gradients(path):
    result, grads = Problem((0, 7, 3)).run(path)
    for name in OUTPUTS:
        assert getattr(result, name).shape == (0,)
    shapes = [(0, 3), (7, 3), (7,)][: {"no_grad": 0, "frozen": 1}.get(path, 3)]
    assert [g.shape for g in grads if g is not None] == shapes
    assert all(not g.any() for g in grads if g is not None)


def test_path_follows_from_what_needs_a_gradient():
    p = Problem((6, 10, 3))

    def path(hidden=False, weight=False, bias=False, kept=2**25, **kwargs):
        h, w, b = p.hidden.clone(), p.weight.clone(), p.bias.clone()
        with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", kept):
            log_probs = gather_logprobs(
                h.requires_grad_(hidden), w.requires_grad_(weight), p.targets, bias=b.requires_grad_(bias), **kwargs
            ).log_probs
        return None if log_probs.grad_fn is None else log_probs.grad_fn.name()

    assert path() is None
    assert path(hidden=True) == "FrozenHeadLogProbBackward"
    for trained in ({"hidden": True, "weight": True}, {"weight": True}, {"bias": True}):
        assert path(**trained, kept=60) == "OneTileLogProbBackward"
        recomputed = "CatBackward0" if logprobs.KERNEL_NEEDS_TRITON else "ChunkedLogProbFunctionBackward"
        assert path(**trained, kept=59) == recomputed
    with torch.no_grad():
        assert path(hidden=True, weight=True) is None


@pytest.mark.parametrize("path", ["one_tile", "recompute"])
@pytest.mark.parametrize("trained", [(1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradients_of_a_part_of_the_head(path, trained):
    p = Problem((6, 10, 3), softcap=2.0)
    _, expected = p.oracle()
    leaves = [x.clone().requires_grad_(i in trained) for i, x in enumerate((p.hidden, p.weight, p.bias))]
    with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 0 if path == "recompute" else 60):
        result = gather_logprobs(leaves[0], leaves[1], p.targets, bias=leaves[2], softcap=2.0)
    (result.log_probs * p.grad).sum().backward()
    for i, (leaf, wanted) in enumerate(zip(leaves, expected, strict=True)):
        if i in trained:
            assert_close(leaf.grad.double(), wanted, rtol=1e-4, atol=1e-5)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("path", PATHS[1:])
def test_backward_twice_gives_the_same_gradient(path):
    p = Problem((6, 10, 3))
    hidden, weight, bias = p.leaves(path)
    with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 0 if path == "recompute" else 60):
        loss = gather_logprobs(hidden, weight, p.targets, bias=bias).log_probs.sum()
    leaves = [x for x in (hidden, weight, bias) if x.requires_grad]
    first, second = torch.autograd.grad(loss, leaves, retain_graph=True), torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_only_what_was_asked_for(path):
    p = Problem((6, 10, 3))
    for asked in [(), ("log_probs",), *((name,) for name in OUTPUTS[1:])]:
        result, _ = p.run(path, outputs=asked)
        assert {name for name in OUTPUTS if getattr(result, name) is not None} == {"log_probs", *asked}
        assert not any(getattr(result, name).requires_grad for name in asked if name != "log_probs")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("columns", [1, 2, 4])
def test_first_of_equal_logits_is_top1(path, columns):
    p = Problem((4, 4, 1), bias=False)
    p.hidden, p.weight, p.targets = torch.ones(4, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0]]), torch.arange(4)
    with tiles(3, columns):
        result, _ = p.run(path)
    assert result.is_top1.tolist() == [False, True, False, False]


class LargestOutput(TorchDispatchMode):
    """Numel of the largest tensor any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("path", ["no_grad", "frozen", "recompute"])
def test_logits_never_exist_as_a_whole(path):
    S, V, H, tile = 96, 500, 4, (16, 64)
    trl_tile = (
        nullcontext()
        if logprobs.KERNEL_NEEDS_TRITON
        else mock.patch("trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE", tile[0])
    )
    with tiles(*tile), trl_tile, LargestOutput() as largest:
        Problem((S, V, H), softcap=5.0).run(path)
    assert largest.numel == max(V * H, tile[0] * tile[1])  # the weight itself, or one tile


@pytest.mark.parametrize(("tokens", "tiles_visited"), [(8, 4), (4, 2), (2, 1), (9, 8)])
def test_fewer_tokens_get_wider_tiles(tokens, tiles_visited):
    with tiles(8, 16), mock.patch.object(_statistics, "fold", wraps=_statistics.fold) as fold:
        Problem((tokens, 60, 3)).check("frozen")
    assert fold.call_count == tiles_visited


@given(st.integers(1, 5000), st.integers(1, 300_000), st.booleans())
def test_tiles_begin_at_aligned_addresses(tokens, vocabulary, on_cpu):
    """Unless one tile holds the whole vocabulary; and no more logits exist at once than the bound."""
    _, width = logprobs._tile_shape(tokens, vocabulary, on_cpu)
    assert width == vocabulary or width % 128 == 0
    most = logprobs.CPU_TILE if on_cpu else logprobs.GPU_TILE
    assert 0 < min(tokens, most[0]) * width <= most[0] * most[1]


@pytest.mark.parametrize(("path", "most"), [("frozen", 96 * 4), ("recompute", 500 * 4)])
def test_kept_for_the_backward_pass(path, most):
    kept = []
    p = Problem((96, 500, 4))
    hidden, weight, bias = p.leaves(path)
    with (
        mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 0),
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x),
    ):
        result = gather_logprobs(hidden, weight, p.targets, bias=bias, outputs=OUTPUTS)
    if path == "frozen":
        assert kept == [(96, 4)]  # the derivative: neither the head nor logits
    assert max(torch.Size(shape).numel() for shape in kept) == most
    result.log_probs.sum().backward()
    assert (weight.grad is None) == (path == "frozen")


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("Gemma2", {"final_logit_softcapping": 5.0, "head_dim": 4}),
        ("Cohere", {"logit_scale": 0.0625}),
        ("Phi", {}),  # a head with a bias
    ],
)
def test_the_models_own_numbers(architecture, options):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=53, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5, **options,
    )  # fmt: skip
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    ids = torch.randint(3, 53, (1, 12))
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, :-1]
        expected = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None]).squeeze(1)
    result = gather_logprobs(
        hidden,
        head.weight.detach(),
        ids[0, 1:],
        bias=None if head.bias is None else head.bias.detach(),
        logit_scale=options.get("logit_scale", 1.0),
        softcap=options.get("final_logit_softcapping"),
    )
    assert_close(result.log_probs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0, -100])}, r"targets\[1\] is -100, not an index into a vocabulary of 5"),
        ({"targets": torch.tensor([5, 0])}, r"targets\[0\] is 5"),
        ({"targets": torch.tensor([0])}, r"shape \(2,\), one for each hidden state"),
        ({"targets": torch.tensor([0, 1], dtype=torch.int32)}, "int64"),
        ({"weight": torch.empty(0)}, "gather the head's parameters first"),
        ({"weight": torch.empty(5, 4)}, r"got \(2, 3\) and \(5, 4\)"),
        ({"bias": torch.empty(4)}, r"bias must be of shape \(5,\)"),
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"outputs": ("log_probs", "perplexity")}, r"Unknown outputs \['perplexity'\]"),
    ],
)
def test_errors_name_the_remedy(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "targets": torch.tensor([0, 4])} | change
    with pytest.raises(ValueError, match=message):
        gather_logprobs(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("targets"), **arguments)


def test_a_target_outside_of_the_vocabulary_is_nan_where_it_is_not_read():
    """As on a GPU, where reading the targets would wait for all that was launched before."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 3, generator=generator), torch.randn(7, 3, generator=generator)
    targets = torch.tensor([0, -100, 3, 7, 6])
    found = logprobs._gather_known(hidden, Head(weight, None, 1.0, None), targets, ()).log_probs
    assert found.isnan().tolist() == [False, True, False, True, False]
    known = torch.tensor([0, 2, 4])
    assert_close(found[known], gather_logprobs(hidden[known], weight, targets[known]).log_probs)


@pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton and a CUDA device or TRITON_INTERPRET=1 (test_triton_kernel_in_the_interpreter sets it)",
)
class TestTritonKernel:
    """The kernel against its torch counterpart, compiled where there is a GPU, else in Triton's interpreter."""

    device = "cuda" if torch.cuda.is_available() else "cpu"

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch):
        monkeypatch.setattr(_scan, "uses_triton", lambda device: True)
        monkeypatch.setattr(_scan._triton, "BLOCK_SIZE", 16)

    @pytest.mark.parametrize("softcap", [None, 3.0])
    @pytest.mark.parametrize("outputs", [(), *((name,) for name in OUTPUTS[1:]), OUTPUTS], ids=str)
    @pytest.mark.parametrize("with_weights", [False, True])
    def test_folds_as_torch_does(self, softcap, outputs, with_weights):
        torch.manual_seed(0)
        y = (torch.randn(5, 100, device=self.device) * 2).round()  # ties within and between blocks
        targets = torch.tensor([0, 99, 40, 39, 63], device=self.device)
        states = [_statistics.RunningStatistics.start(targets, torch.float32, outputs) for _ in range(2)]
        for columns in (slice(0, 40), slice(40, 56), slice(56, 100)):
            results = [
                fold(y[:, columns].clone(), columns.start, targets, state, 0.7, softcap, with_weights)
                for fold, state in zip((_statistics.fold, _scan._triton.fold), states, strict=True)
            ]
            assert_close(results[0][1], results[1][1])
            if with_weights:
                assert_close(*(weights for weights, _ in results), rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(results[1][0], y[:, columns])
            for name, value in vars(states[0]).items():
                if value is not None:
                    assert_close(getattr(states[1], name), value, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("path", ["no_grad", "frozen"])
    def test_values_and_gradients(self, path):
        for bias, softcap in itertools.product((False, True), (None, 3.0)):
            with tiles(4, 20):
                Problem((7, 50, 5), bias=bias, scale=0.5, softcap=softcap, device=self.device).check(path)

    def test_weights_are_rounded_only_to_the_tiles_dtype(self):
        p = Problem((7, 50, 5), dtype=torch.bfloat16, device=self.device, spread=1.0)
        with tiles(4, 20):
            result, (grad, _, _) = p.run("frozen")
        expected, (expected_grad, _, _) = p.oracle()
        assert_close(result.log_probs.detach().double(), expected.log_probs, rtol=0, atol=2**-4)
        assert (grad.double() - expected_grad).norm() < 2**-6 * expected_grad.norm()

    def test_no_tokens(self):
        result, (grad, _, _) = Problem((0, 7, 3), device=self.device).run("frozen")
        assert result.log_probs.shape == (0,)
        assert grad.shape == (0, 3)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: it comes with the test group on Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="TestTritonKernel runs the compiled kernel on this machine")
@pytest.mark.skipif(INTERPRETED, reason="already inside the interpreter")
def test_triton_kernel_in_the_interpreter():
    # Triton reads the variable when it is imported, which transformers has long done in this process.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestTritonKernel"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
    assert "skipped" not in run.stdout


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: it comes with the test group on Linux")
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("tile_type", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("everything", [False, True])
def test_triton_kernel_compiles_without_a_gpu(tile_type, everything, capability):
    # The interpreter runs Python: it accepts loops whose types change, which the compiler rejects.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _scan._triton._fold_kernel
    types = {
        "tile_ptr": tile_type,
        "targets_ptr": "*i64",
        "argmax_ptr": "*i64",
        "logit_scale": "fp32",
        "softcap": "fp32",
    }
    constants = {name: everything for name in kernel.arg_names if name.isupper()} | {"BLOCK_SIZE": 2048}
    if not everything:
        optional = ("sum_logits_ptr", "sum_exp_logits_ptr", "sum_sq_exp_ptr", "argmax_ptr")
        constants |= dict.fromkeys(optional)
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    indices = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, signature, indices), target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", ["no_grad", "frozen", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda(path, dtype):
    p = Problem((300, 5003, 64), scale=0.5, softcap=20.0, dtype=dtype, device="cuda", spread=0.5)
    if dtype == torch.float32:
        with tiles(128, 1024):
            p.check(path, rtol=1e-3, atol=1e-4)
        return
    with tiles(128, 1024):
        result, grads = p.run(path)
    expected, expected_grads = p.oracle()
    assert_close(result.log_probs.detach().double(), expected.log_probs, rtol=0, atol=2**-3)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        if grad is not None:
            assert (grad.double() - wanted).norm() < 2**-6 * wanted.norm()
