"""How good generated images are, in numbers.

sliced_wasserstein     how near to real images, at each scale; needs nothing but the images
ms_ssim_diversity      how much generated images differ from each other: a generator that collapsed gives one picture
fid                    how near to real images, as a network sees them that you supply
"""

from minigan.metrics.frechet import fid, frechet_distance
from minigan.metrics.ms_ssim import ms_ssim, ms_ssim_diversity
from minigan.metrics.sliced_wasserstein import sliced_wasserstein

__all__ = ["fid", "frechet_distance", "ms_ssim", "ms_ssim_diversity", "sliced_wasserstein"]
