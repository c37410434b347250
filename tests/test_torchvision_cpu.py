import subprocess
import sys


def test_torchvision_imports_after_the_package_and_keeps_its_own_operators_if_they_work():
    code = (
        "import sys, bagnet_lightning\n"
        "assert 'torch' not in sys.modules\n"
        "import torchvision.models, torch\n"
        "from torchvision.extension import _has_ops\n"
        "if _has_ops(): print(torchvision.ops.nms(torch.tensor([[0., 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0])\n"
        "else: print(hasattr(torch.ops.torchvision, 'nms'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
