"""Read latent shards into training.

from loader import make_loader
batches = make_loader("latents/demo", batch_size=4, resolution=256, caption_drop_prob=0.1)
for batch in batches: ...            # batches.state_dict() / load_state_dict(state)
"""

from loader.as_webdataset import as_webdataset
from loader.dataset import LatentDataset
from loader.draw import noise
from loader.format import FormatError
from loader.loader import Loader, make_loader
from loader.source import DataError

__all__ = ["DataError", "FormatError", "LatentDataset", "Loader", "as_webdataset", "make_loader", "noise"]
