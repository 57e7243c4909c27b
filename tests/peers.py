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


def theirs(in_channels=1, out_channels=1, *, f_maps, levels, groups=4, flat=False):
    """pytorch-3dunet's network of the same architecture."""
    models = pytorch3dunet()
    options = {"f_maps": f_maps, "num_groups": groups, "num_levels": levels, "is_segmentation": False}
    if not flat:
        return models.UNet3D(in_channels, out_channels, **options)
    options |= {"conv_kernel_size": (1, 3, 3), "conv_padding": (0, 1, 1), "pool_kernel_size": (1, 2, 2)}
    return models.AbstractUNet(in_channels, out_channels, True, models.DoubleConv, **options)
