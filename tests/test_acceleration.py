"""The fast step trains the same weights as the plain one. CUDA graphs are simulated: their operations are repeated."""

import contextlib
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, PowerCut, composed
from functorch.compile import nop
from test_fit import rows
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bagnet_lightning.errors import Diverged, UserError
from bagnet_lightning.models.bagnet import Bottleneck
from bagnet_lightning.training import acceleration, cuda_graphs, divergence, muon
from bagnet_lightning.training.acceleration import Compiled
from bagnet_lightning.training.batch_norm import WrittenOutBatchNorm2d
from bagnet_lightning.training.classifier import Classifier
from bagnet_lightning.training.cuda_graphs import Graphed, UpdateGraphed
from bagnet_lightning.training.fit import fit

RUN = [*SMALL, "data.train_images=64", "data.val_images=6", "data.batch_size=12", "trainer.max_epochs=2"]


class SimulatedGraph:
    """Repeats the operations that were recorded, on the same tensors, as a CUDA graph does."""

    def __init__(self):
        self.operations = []

    @torch.no_grad()
    def replay(self):
        for function, arguments, named, results in self.operations:
            for kept, new in zip(tree_iter(results), tree_iter(function(*arguments, **named)), strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class Recording(TorchDispatchMode):
    """Unlike a GPU's it has to compute, so it puts back what was there before."""

    def __init__(self, graph, pool, stream):
        super().__init__()
        self.graph, self.before, self.made = graph, {}, {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        for tensor in tree_iter((arguments, named)):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self.made and id(tensor) not in self.before:
                self.before[id(tensor)] = tensor, tensor.detach().clone()
        results = function(*arguments, **named)
        self.made |= {id(tensor): tensor for tensor in tree_iter(results) if id(tensor) not in self.before}
        self.graph.operations.append((function, arguments, named, results))
        return results

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in self.before.values():
                tensor.copy_(value)


@pytest.fixture
def cuda(monkeypatch):
    """What cuda_graphs.py needs of torch.cuda."""
    streams = [SimpleNamespace(wait_stream=lambda other: None)]
    simulated = SimpleNamespace(
        Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        current_stream=lambda: streams[-1],
        set_stream=streams.append,
        stream=lambda of: contextlib.nullcontext(),
        synchronize=lambda: None,
        CUDAGraph=SimulatedGraph,
        graph_pool_handle=lambda: (0, 1),
        current_device=lambda: 0,
        graph=Recording,
    )
    monkeypatch.setattr(muon, "ITERATIONS", 1)  # most of a step's time here
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(acceleration, "_no_graph", lambda trainer: None)
    monkeypatch.setattr(cuda_graphs, "torch", SimpleNamespace(**{**vars(torch), "cuda": simulated}))


def test_each_graph_has_a_stream_of_its_own_where_torch_frees_the_streams_workspace_with_it(cuda, monkeypatch):
    for version, own in (("2.11.0", False), ("2.13.0", True)):
        monkeypatch.setattr(cuda_graphs.torch, "__version__", torch.torch_version.TorchVersion(version))
        one, other = (cuda_graphs.Graphed(len, 1, True) for _ in range(2))
        assert (one.stream is other.stream) != own
        assert one.stream is one.stream


def weights(folder):
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return [*checkpoint["state_dict"].values(), checkpoint["epoch_so_far"]["totals"]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim=adam", "trainer.precision=bf16-mixed", "patch_loss=0.3"],
        ["optim=sgd", "trainer.gradient_clip_val=0.5", "scheduler=onecycle"],
        # Rates as tensors round otherwise, and long steps would make much of that.
        ["optim=muon", "optim.lr=0.001", "trainer.precision=64-true", "trainer.gradient_clip_val=0.5"],
    ],
)
def test_a_recorded_step_trains_the_same_weights_through_smaller_batches_and_validation(tmp_path, cuda, overrides):
    plain = fit(composed(*RUN, *overrides, "trainer.cuda_graph=false"), tmp_path / "plain")
    graphed = fit(composed(*RUN, *overrides, "trainer.cuda_graph=true"), tmp_path / "graphed")
    assert graphed["compile_seconds"] > 0 == plain["compile_seconds"]
    assert [(run["compiled"], run["cuda_graph"]) for run in (plain, graphed)] == [(False, False), (False, True)]
    assert graphed["final_val_accuracy"] == plain["final_val_accuracy"]
    for expected, trained in zip(weights(tmp_path / "plain"), weights(tmp_path / "graphed"), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-6)


def test_the_update_of_muon_alone_is_recorded_too(tmp_path, cuda, monkeypatch):
    made, replays = [], []
    attach, replay = UpdateGraphed.attach, SimulatedGraph.replay
    monkeypatch.setattr(UpdateGraphed, "attach", lambda self, optimizer: made.append(self) or attach(self, optimizer))
    monkeypatch.setattr(SimulatedGraph, "replay", lambda self: replays.append(self) or replay(self))
    for optim in ("muon", "adam"):
        fit(composed(*RUN, f"optim={optim}", "trainer.cuda_graph=true"), tmp_path / optim)
    of_muon, of_adam = made
    assert of_adam.graph is None
    # Ten batches are whole, the gradients of three are computed before they are recorded; then the same with updates.
    assert [replays.count(of_muon.gradients.graph), replays.count(of_muon.graph)] == [7, 4]


def test_the_update_of_a_network_without_norms_and_biases_is_recorded(cuda):
    module = torch.nn.Linear(2, 2, bias=False)
    optimizer = muon.Muon([{"params": [module.weight]}, {"params": []}], lr=0.1, momentum=0.9, weight_decay=0.0)
    module.weight.hidden = False
    UpdateGraphed(SimpleNamespace(module=module, in_place=True), required=True).attach(optimizer)
    before = module.weight.detach().clone()
    module.weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before - 0.19)


def test_an_update_whose_momentum_changes_is_not_replayed(tmp_path, cuda):
    overrides = [*RUN, "optim=muon", "optim.lr=0.001", "trainer.precision=64-true", "scheduler=onecycle"]
    overrides += ["scheduler.cycle_momentum=true"]
    fit(composed(*overrides, "trainer.cuda_graph=false"), tmp_path / "plain")
    fit(composed(*overrides, "trainer.cuda_graph=true"), tmp_path / "graphed")
    for expected, trained in zip(weights(tmp_path / "plain"), weights(tmp_path / "graphed"), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optim", ["adam", "muon"])
def test_a_recorded_step_goes_on_from_a_checkpoint(tmp_path, cuda, monkeypatch, optim):
    overrides = [*RUN, f"optim={optim}", "checkpoint.every_n_steps=5", "trainer.cuda_graph=true"]
    fit(composed(*overrides), tmp_path / "unbroken")
    original = Classifier.training_step

    def killed(self, batch):
        if self.trainer.global_step == 7:
            raise PowerCut
        return original(self, batch)

    monkeypatch.setattr(Classifier, "training_step", killed)
    with pytest.raises(PowerCut):
        fit(composed(*overrides), tmp_path / "broken")
    monkeypatch.setattr(Classifier, "training_step", original)
    fit(composed(*overrides), tmp_path / "broken")
    for expected, continued in zip(weights(tmp_path / "unbroken"), weights(tmp_path / "broken"), strict=True):
        torch.testing.assert_close(continued, expected, rtol=1e-5, atol=1e-6)


def test_a_graph_that_cannot_be_recorded_is_done_without_unless_it_was_asked_for(tmp_path, cuda, monkeypatch, caplog):
    torch_cuda = cuda_graphs.torch.cuda
    stream = torch_cuda.current_stream()

    def fail(graph, pool, stream):  # as torch's own: its stream stays where recording cannot be ended
        torch_cuda.set_stream(stream)
        try:
            raise NotImplementedError("no such operation while a stream is recorded")
        except NotImplementedError:
            raise RuntimeError("previous error during capture")  # noqa: B904

    monkeypatch.setattr(torch_cuda, "graph", fail)
    ended = []
    private = {name: lambda *pool: ended.append(pool) for name in ("_cuda_endAllocateToPool", "_cuda_releasePool")}
    monkeypatch.setattr(cuda_graphs.torch, "_C", SimpleNamespace(**private))
    monkeypatch.setattr(cuda_graphs.torch, "__version__", torch.torch_version.TorchVersion("2.11.0+cu130"))
    fit(composed(*RUN, "trainer.cuda_graph=false"), tmp_path / "plain")
    assert not fit(composed(*RUN), tmp_path / "auto")["cuda_graph"]
    assert "NotImplementedError: no such operation" in caplog.text
    assert torch_cuda.current_stream() is stream
    assert set(ended) == {(0, (0, 1))}
    for expected, trained in zip(weights(tmp_path / "plain"), weights(tmp_path / "auto"), strict=True):
        assert torch.equal(expected, trained)
    with pytest.raises(RuntimeError, match="capture"):
        fit(composed(*RUN, "trainer.cuda_graph=true"), tmp_path / "asked")
    assert torch_cuda.current_stream() is stream


@pytest.mark.parametrize(("every_n_steps", "kept"), [("4", 8), ("null", 6)])
def test_divergence_is_noticed_late_but_before_a_checkpoint_or_a_validation(
    tmp_path, cuda, monkeypatch, every_n_steps, kept
):
    monkeypatch.setattr(divergence, "WITHOUT_WAITING", ())
    original = Classifier.loss

    def poisoned(self, images, labels):
        return original(self, images, labels) * (float("nan") if self.trainer.global_step == 8 else 1)

    monkeypatch.setattr(Classifier, "loss", poisoned)
    with pytest.raises(
        Diverged, match=r"is nan at step 8 \(epoch 2, learning rate 0.001, train images \[\d+(, \d+){11}"
    ):
        fit(composed(*RUN, f"checkpoint.every_n_steps={every_n_steps}", "trainer.cuda_graph=false"), tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == kept
    assert len(rows(tmp_path)) == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


def test_where_reading_a_loss_waits_it_is_read_every_so_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "WITHOUT_WAITING", ())
    monkeypatch.setattr(divergence, "STEPS", 3)
    callback = divergence.StopOnDivergence(tmp_path / "last.ckpt")
    strategy = SimpleNamespace(
        reduce=lambda losses, reduce_op: losses, checkpoint_io=SimpleNamespace(wait=lambda: None)
    )
    optimizers = [SimpleNamespace(param_groups=[{"lr": 0.1}])]
    trainer = SimpleNamespace(current_epoch=0, world_size=1, strategy=strategy, optimizers=optimizers)

    def step(number, loss):
        trainer.global_step = number
        callback.on_train_batch_start(trainer, None, (None, None, torch.tensor([number])), number)
        callback.on_before_backward(trainer, None, torch.tensor(loss))

    for number, loss in enumerate([1.0, 1.0, 1.0, float("nan"), 1.0]):
        step(number, loss)
    with pytest.raises(Diverged, match=r"is nan at step 3 .*, train images \[3\]"):
        step(5, 1.0)


def test_what_is_not_possible_is_off_or_refused(tmp_path, monkeypatch):
    result = fit(composed(*RUN, "trainer.max_epochs=1"), tmp_path)
    assert (result["compile_seconds"], result["compiled"], result["cuda_graph"]) == (0, False, False)
    with pytest.raises(UserError, match=r"trainer\.cuda_graph=true is not possible without an NVIDIA GPU; leave it at"):
        fit(composed(*RUN, "trainer.cuda_graph=true"), tmp_path / "graph")
    with pytest.raises(UserError, match=r"trainer\.fused_norm=true is not possible without trainer\.compile; leave it"):
        fit(composed(*RUN, "trainer.fused_norm=true"), tmp_path / "norm")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.0.1+cu117"))
    for asked in ("true", "max-autotune"):
        with pytest.raises(UserError, match=rf"trainer\.compile={asked} is not possible before torch 2\.5"):
            fit(composed(*RUN, f"trainer.compile={asked}"), tmp_path / "compile")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"capability": (6, 1)}, "below compute capability 7.0"),
        ({"world_size": 2}, "with several processes"),
        ({"accumulate_grad_batches": 2}, "with trainer.accumulate_grad_batches above 1"),
        ({"precision": "16-mixed"}, "with trainer.precision=16-mixed, which scales the loss"),
    ],
)
def test_what_a_graph_would_train_wrongly_on_a_gpu_is_trained_without(monkeypatch, changed, words):
    usual = {"capability": (9, 0), "world_size": 1, "accumulate_grad_batches": 1, "precision": "bf16-mixed"}
    trainer = SimpleNamespace(**usual | changed, strategy=SimpleNamespace(root_device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: trainer.capability)
    assert acceleration._no_graph(trainer) == words


def test_a_run_that_is_to_be_exactly_repeatable_is_not_compiled_unasked(monkeypatch):
    trainer = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(acceleration, "find_spec", lambda name: name)
    assert acceleration._no_compiling(trainer, "auto") is None
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert acceleration._no_compiling(trainer, "auto") == "with trainer.deterministic=true"
    assert acceleration._no_compiling(trainer, True) is None


def test_batch_norms_that_fuse_train_the_same_where_a_step_is_compiled_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: function)
    calls, original = [], WrittenOutBatchNorm2d.forward
    monkeypatch.setattr(WrittenOutBatchNorm2d, "forward", lambda self, x: calls.append(x) or original(self, x))
    # Small steps, since such a small network makes a hundred times more of a rounding error with every large one.
    overrides = [*RUN, "trainer.compile=true", "trainer.precision=64-true", "optim.lr=1e-06", "trainer.max_epochs=1"]
    for name, switch, replaced in (("plain", "false", False), ("auto", "auto", True)):
        fit(composed(*overrides, f"trainer.fused_norm={switch}"), tmp_path / name)
        assert bool(calls) is replaced
    for expected, trained in zip(weights(tmp_path / "plain"), weights(tmp_path / "auto"), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-6, atol=1e-9)


def test_a_compiler_that_fails_is_done_without_unless_it_was_asked_for(monkeypatch):
    def fail(*inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: fail)
    batch = torch.ones(4)
    compiled = Compiled(torch.neg, 4, required=False)
    assert torch.equal(compiled(batch), -batch)
    assert torch.equal(compiled(batch), -batch)
    with pytest.raises(RuntimeError, match="compiler"):
        Compiled(torch.neg, 4, required=True)(batch)
    assert torch.equal(Compiled(torch.neg, 4, required=True)(batch[:3]), -batch[:3])


def test_a_compiler_that_fails_at_the_backward_pass_is_done_without_too(monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("no code for this card")

    compiler = torch.compile
    backend = aot_autograd(fw_compiler=nop, bw_compiler=fail)
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic, options: compiler(function, dynamic=dynamic, backend=backend)
    )
    layer, batch = torch.nn.Linear(3, 3), torch.randn(4, 3)
    compiled = Compiled(layer.forward, 4, required=False)
    compiled(batch).sum().backward()
    assert compiled.compiled is None
    torch.testing.assert_close(layer.weight.grad, batch.sum(0).expand(3, 3))
    with pytest.raises(Exception, match="no code for this card"):
        Compiled(layer.forward, 4, required=True)(batch)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("autotune", [False, True])
def test_a_compiled_function_and_its_gradients_are_those_of_the_plain_one(autotune):
    torch.manual_seed(0)
    block = Bottleneck(16, 16, kernel=1, stride=2).to(memory_format=torch.channels_last)
    batch = torch.randn(4, 16, 5, 5)

    def function(inputs):
        return block(inputs).square().sum()

    compiled = Compiled(function, 4, required=True, autotune=autotune)
    gradients = []
    for step in (function, compiled, compiled):
        block.zero_grad()
        step(batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in block.parameters()]))
    assert compiled.seconds > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * gradients[0].abs().max().item())
    assert torch.equal(gradients[2], gradients[1])


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_a_sweeps_next_network_of_the_same_kind_is_not_compiled_again():
    torch.manual_seed(0)
    networks = [torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)]
    compiled = [Compiled(network.forward, 4, required=True) for network in networks]
    batch, graphs = torch.randn(4, 3), []
    for function, network in zip(compiled, networks, strict=True):
        torch.testing.assert_close(function(batch), network(batch))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


def test_for_a_batch_that_comes_once_an_epoch_no_convolutions_are_searched(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    searching = []
    graphed = Graphed(lambda batch: searching.append(torch.backends.cudnn.benchmark) or -batch, 4, required=True)
    assert torch.equal(graphed(torch.ones(3)), -torch.ones(3))
    assert searching == [False]
    assert torch.backends.cudnn.benchmark
