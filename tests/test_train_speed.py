"""The benchmark of training, on a CPU and few images: what it makes of its measurements."""

import json
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, composed
from hydra.utils import instantiate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def step_parts():
    return runpy.run_path(str(BENCHMARKS / "step_parts.py"))


@pytest.fixture
def train_speed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "train_speed.py"))


def test_the_parts_of_a_step_are_never_below_zero_and_add_up_to_it(step_parts, monkeypatch):
    parts = step_parts["StepParts"](composed(*SMALL, "optim=adam"))
    before = [weight.clone() for weight in parts.network.parameters()]
    for measured, step, expected in [
        ([1, 3, 7, 8], 10, [1, 2, 4, 1, 2]),
        ([1, 3, 7, 6.9], 5, [1, 2, 4, 0, 0]),  # noise, and a loop that the device hides
    ]:
        times = iter(measured)

        def paced_ms(function, times=times):
            function()
            return next(times)

        monkeypatch.setitem(parts.split.__func__.__globals__, "paced_ms", paced_ms)
        assert list(parts.split(step).values()) == expected
    assert any(not torch.equal(old, new) for old, new in zip(before, parts.network.parameters(), strict=True))


def test_kernels_are_told_by_their_names(step_parts):
    names = {
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_kernel__5x_cublas": "matrix",
        "nvjet_hsh_128x128_64x6_1x2_h_bz_coopA_TNT": "matrix",
        "sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc": "matrix",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized>": "matrix",
        "triton_tem_fused_mm_3": "matrix",
        "aten::addmm": "matrix",
        "aten::mkldnn_convolution": "matrix",
        "void at::native::batch_norm_collect_statistics_channels_last_kernel<...>": "batch norm",
        "void cudnn::bn_bw_1C11_kernel_new<...>": "batch norm",
        "void cudnn::batchnorm_fwtr_nhwc_semiPersist<...>": "batch norm",
        "triton_red_fused__native_batch_norm_legit_functional_native_batch_norm_backward_12": "compiled, with sums",
        "triton_poi_fused__to_copy_relu_3": "compiled, elementwise",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "elementwise",
        "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(...)>": "copies",
        "void cudnn::ops::nchwToNhwcKernel<...>": "copies",
        "Memcpy DtoD (Device -> Device)": "copies",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps>>": "sums",
        "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>": "loss and accuracy",
        "something_new": "other",
    }
    for name, expected in names.items():
        assert step_parts["kind"](name).startswith(expected), name
    rows = [(1.0, 5, "aten::mm"), (2.0, 1, "aten::bmm"), (4.0, 1, "?")]
    assert step_parts["by_kind"](rows) == {"other": 4.0, "matrix products": 3.0}


def test_the_profile_of_a_step_has_its_convolutions_norms_and_optimizer(step_parts, tmp_path):
    kinds = step_parts["StepParts"](composed(*SMALL)).profile(tmp_path / "profile.txt")
    assert kinds["matrix products"] > 0
    assert kinds["batch norm"] > 0
    assert kinds["optimizer"] > 0
    assert "a step the optimizer" in (tmp_path / "profile.txt").read_text()


def test_the_peak_is_that_of_the_runs_own_precision_and_the_targets_stand_beside(train_speed, monkeypatch, capsys):
    asked, names = [], train_speed["measurements"].__globals__
    monkeypatch.setitem(names, "matmul_tflops", lambda dtype: asked.append(dtype) or 2.0)
    monkeypatch.setitem(names, "plain_rate", lambda *rest: 10.0)
    config = composed(*SMALL, "trainer.precision=bf16-mixed", "+trainer.limit_train_batches=2")
    measured = {}
    for part in train_speed["measurements"](config, 1, None):
        measured |= part
    assert asked == [torch.bfloat16]
    assert measured["precision"] == "bf16-mixed"
    assert measured["share_of_matmul"] == measured["tflops"] / 2.0
    assert measured["ratio"] == measured["images_per_second"] / 10
    train_speed["report"]("bagnet9", measured)
    printed = capsys.readouterr().out
    assert "target 60 s on one H200" in printed
    assert "(target 6)" in printed


def test_operations_are_counted_on_the_networks_own_device(train_speed):
    network = instantiate(composed(*SMALL).model, num_classes=4)
    on_cpu = train_speed["step_flop"](network, 33)
    assert train_speed["step_flop"](network.to("meta"), 33) == on_cpu > 0


def test_a_second_call_measures_only_what_the_first_has_not(train_speed, monkeypatch, tmp_path):
    asked, names = [], train_speed["main"].__globals__
    monkeypatch.setitem(
        names, "measurements", lambda config, *rest: asked.append(config.model._target_) or [{"n": len(asked)}]
    )
    monkeypatch.setitem(names, "report", lambda model, measured: None)
    monkeypatch.setenv("BAGNET_DATA", "")
    out = tmp_path / "speed.json"
    for models in ("bagnet9", "bagnet9,resnet18"):
        monkeypatch.setattr(sys, "argv", ["train_speed.py", str(tmp_path), "--models", models, "--out", str(out)])
        train_speed["main"]()
    measured = json.loads(out.read_text())
    assert len(asked) == 2
    assert (measured["bagnet9"], measured["resnet18"]) == tuple({"n": n, "complete": True} for n in (1, 2))
    out.write_text(json.dumps({**measured, "torch": "0.1"}))  # what another torch has done says nothing of this one
    train_speed["main"]()
    assert len(asked) == 4


def test_what_is_measured_before_a_failure_is_kept(train_speed, monkeypatch, tmp_path, capsys):
    def fails(config, *rest):
        yield {"n": 1}
        raise RuntimeError("no room for workers")

    monkeypatch.setitem(train_speed["main"].__globals__, "measurements", fails)
    monkeypatch.setitem(train_speed["main"].__globals__, "report", lambda model, measured: None)
    monkeypatch.setenv("BAGNET_DATA", "")
    out = tmp_path / "speed.json"
    asked = ["train_speed.py", str(tmp_path), "--models", "bagnet9,resnet18", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit, match="bagnet9, resnet18"):
        train_speed["main"]()
    measured = json.loads(out.read_text())
    assert (measured["bagnet9"], measured["resnet18"]) == ({"n": 1}, {"n": 1})
    with pytest.raises(SystemExit, match="bagnet9, resnet18"):  # the rest is still to be measured
        train_speed["main"]()
    assert "no room for workers" in capsys.readouterr().err


def test_annotations_on_the_gpu_do_not_count_their_kernels_again(step_parts, monkeypatch):
    cuda = torch.autograd.DeviceType.CUDA

    def event(key, annotation):
        fields = {"device_type": cuda, "is_user_annotation": annotation, "self_device_time_total": 2e4, "count": 10}
        return SimpleNamespace(key=key, self_cpu_time_total=0, **fields)

    events = [event("gemm", False), event("Optimizer.step#Muon.step", True)]
    profiler = nullcontext(SimpleNamespace(key_averages=lambda: events))
    kernels = step_parts["StepParts"]._kernels
    monkeypatch.setattr(torch.profiler, "profile", lambda: profiler)
    parts = SimpleNamespace(device=torch.device("cuda"))
    steps = step_parts["PROFILED"]
    assert kernels(parts, lambda: None) == [(20 / steps, 10 / steps, "gemm")]
