"""Labelled images from the files that their authors publish: CIFAR's binary version, IDX, the Tiny ImageNet folder.

    from labrig.images import read_images

    sets = read_images("cifar10", Path("cifar-10-batches-bin"))
    sets.train.pixels.shape  # (50000, 32, 32, 3)

Nothing is ever downloaded or unpickled; numpy only, and Pillow for the JPEG files of Tiny ImageNet.
"""

from labrig.images.labelled import ImageSplits, LabelledImages, hold_out
from labrig.images.registry import IMAGE_SETS, read_images

__all__ = ["IMAGE_SETS", "ImageSplits", "LabelledImages", "hold_out", "read_images"]
