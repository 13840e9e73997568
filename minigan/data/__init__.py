"""Images as people have them: folders and archives, decoded once, in batches."""

from minigan.data.batches import Batches
from minigan.data.decode import decode
from minigan.data.images import ImageSet, load_images
from minigan.data.sources import DataError, open_source

__all__ = ["Batches", "DataError", "ImageSet", "decode", "load_images", "open_source"]
