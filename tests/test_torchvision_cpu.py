import subprocess
import sys


def test_torchvision_imports_after_the_package_in_a_fresh_process():
    code = "import sys, bagnet_lightning; assert 'torch' not in sys.modules; import torchvision.models; print('ok')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ok\n"


def test_a_torchvision_that_works_keeps_its_own_operators():
    code = (
        "import bagnet_lightning, torchvision, torch\n"
        "from torchvision.extension import _has_ops\n"
        "if _has_ops(): print(torchvision.ops.nms(torch.tensor([[0., 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0])\n"
        "else: print(hasattr(torch.ops.torchvision, 'nms'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
