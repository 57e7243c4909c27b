"""Peers that tests compare with."""

import importlib
import importlib.util
import sys
import types


def pytorch3dunet():
    """The installed package's models; all they ask of scikit-image is a name that draws pictures."""
    if importlib.util.find_spec("skimage") is None:
        sys.modules["skimage"] = types.ModuleType("skimage")
        sys.modules["skimage.color"] = color = types.ModuleType("skimage.color")
        color.label2rgb = None
    return importlib.import_module("pytorch3dunet.unet3d.model")


def theirs(in_channels=1, out_channels=1, *, f_maps, levels, groups=4):
    """pytorch-3dunet's network of the same architecture."""
    return pytorch3dunet().UNet3D(
        in_channels, out_channels, f_maps=f_maps, num_groups=groups, num_levels=levels, is_segmentation=False
    )
