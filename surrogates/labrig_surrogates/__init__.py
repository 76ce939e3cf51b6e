"""Differentiable models of an analog array: layers, noise laws, backends. Torch only; knows no instrument.

`labrig_surrogates.parameters` and `.io` need numpy and safetensors only; everything else needs the extra `train`.
"""
