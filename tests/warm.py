"""What every command does first, done once before commands are forked: their tests would else wait for it each time.

Parsers and type checks keep what they have learnt; Hydra's plugins are looked for again, in the command's own folder.
"""

import gc

from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton

import bagnet_lightning.reporting.report
import bagnet_lightning.training.run  # noqa: F401
from bagnet_lightning.paths import CONF

with initialize_config_dir(str(CONF), version_base="1.3"):
    compose("config", ["data=textures"], return_hydra_config=True)
Singleton._instances.pop(Plugins)
gc.collect()
gc.freeze()  # or each forked process would look through all of this, and so copy it
