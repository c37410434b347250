"""A local page for images: shows a network's prediction and which patches are evidence for it.

python -m bagnet_lightning.demo checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt
"""

import os
from importlib.util import find_spec

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.rules import PATH, or_null, whole

RULES = {
    "checkpoint": PATH,
    "port": or_null(whole(1, 2**16 - 1)),
    "max_mib": whole(1, 2**20),
    "max_megapixels": whole(1, 2**20),
}


@command("demo", RULES)
def main(config: DictConfig) -> None:
    if find_spec("gradio") is None:
        raise UserError("the demo needs Gradio: pip install 'bagnet-lightning[demo]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; nothing is sent anywhere
    os.environ["HF_HUB_OFFLINE"] = "1"

    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.inference.demo_page import THEME, page

    trained = load_trained(config.checkpoint)
    blocks = page(trained, config.max_megapixels * 10**6)
    try:
        blocks.launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            max_file_size=config.max_mib * 2**20,
            footer_links=[],
            theme=THEME,
            ssr_mode=False,
        )
    except OSError as error:
        raise UserError(f"cannot serve on {config.host}, port {config.port} ({error}); try port=null") from error


if __name__ == "__main__":
    main()
