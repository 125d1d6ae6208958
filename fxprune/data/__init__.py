"""A data set's name -> images that fit the model: to train, to test, to score.

    digits                  scikit-learn's 1797 handwritten digits, 8 x 8, no download
    fashion-mnist           60,000 + 10,000 images, 28 x 28 (Debian: dataset-fashion-mnist)
    cifar10, cifar100       50,000 + 10,000 images, 32 x 32
    imagefolder:PATH        one folder a class, in PATH itself or in its train/ and val/ (or test/)
    tiny-imagenet:PATH      the unpacked tiny-imagenet-200

Every image set takes the channels, height and width of the model's input.
Each kind is a `Family` in a module of its own; `fxprune.data.loading` lists them.
"""

from fxprune.data.images import ImageData, ImageSet
from fxprune.data.loading import load, num_classes

__all__ = ["ImageData", "ImageSet", "load", "num_classes"]
