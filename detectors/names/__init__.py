"""What each codebase calls the weights of one model, in plain Python and numpy.

Our names are the canonical ones: class rows 0..K-1 with the background last, box offsets and masks for the K classes
only. Each codebase has a module here with

    supports(model: str) -> bool                             whether it has this model of ours
    convert(model: str, state: Mapping[str, ndarray]) -> dict[str, ndarray]      our weights to its own

and, where its layers are not those of our model as it is built by default,

    source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]     what ours has to be built with

`detectors.foreign` turns the maps around. The harness loads this folder by its path, so nothing here may import torch
or another part of `detectors`.
"""
