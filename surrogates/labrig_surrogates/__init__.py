"""Differentiable models of an analog array: layers, noise laws, backends. Torch only; knows no instrument.

What `__all__` lists is promised, and each name loads its module when it is first used: see
docs/reference/public-api.md. The names of `labrig_surrogates.parameters` and `.io` need numpy and safetensors only; all
others need the extra `train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labrig_surrogates.activation_statistics import record_statistics
    from labrig_surrogates.activations import AsymmetricActivation, FittedActivation, StretchedExponential
    from labrig_surrogates.analog_config import AnalogConfig
    from labrig_surrogates.array_surrogate import ArraySurrogate
    from labrig_surrogates.attention import AnalogMultiheadAttention
    from labrig_surrogates.backend import Backend, DigitalBackend, NominalBackend, SurrogateBackend
    from labrig_surrogates.calibrate_ranges import calibrate_ranges as calibrate_input_ranges
    from labrig_surrogates.cell_traces import CellTrace
    from labrig_surrogates.convert import to_analog, to_digital
    from labrig_surrogates.convolution import AnalogConv1d, AnalogConv2d
    from labrig_surrogates.current_noise import ShotNoise, ThermalNoise
    from labrig_surrogates.describe import describe as describe_model
    from labrig_surrogates.device_effect import DeviceEffect
    from labrig_surrogates.device_presets import hermes, pcm_joshi, pcm_like, reram_cmo, reram_milo, reram_wan, sonos
    from labrig_surrogates.drift_compensation import compensate_drift, note_response
    from labrig_surrogates.effect_settings import (
        Adc,
        Dac,
        OutputNoise,
        ReadNoise,
        Saturation,
        WeightNoise,
        WeightQuantization,
    )
    from labrig_surrogates.energy import EnergyModel
    from labrig_surrogates.energy_loads import layer_loads
    from labrig_surrogates.energy_report import EnergyReport, LayerLoad
    from labrig_surrogates.errors import SurrogateError
    from labrig_surrogates.io import load_chip, save_chip
    from labrig_surrogates.layers import AnalogLayer, AnalogLinear, analog_layers, set_backend
    from labrig_surrogates.losses import LossTerms, PhysicsInformedLoss
    from labrig_surrogates.mismatch import CellMismatch, ColumnMismatch
    from labrig_surrogates.model_tools import (
        clip_weights,
        erase,
        new_chip,
        new_write,
        noise_off,
        program,
        seed_noise,
        set_age,
    )
    from labrig_surrogates.models.airbench import Airbench
    from labrig_surrogates.models.diffusion import DenoisingNetwork
    from labrig_surrogates.models.energy_based import BoltzmannMachine
    from labrig_surrogates.models.equilibrium import Equilibrium
    from labrig_surrogates.models.equilibrium_propagation import EquilibriumPropagation
    from labrig_surrogates.models.recurrent import PhysicalRecurrence
    from labrig_surrogates.models.resnet import resnet18, resnet20
    from labrig_surrogates.noise_levels import NoiseSpec, OutputScale, output_sigma, weight_sigma
    from labrig_surrogates.noise_traces import Flicker, Telegraph
    from labrig_surrogates.output_transfer import Compression, MeasuredTransfer
    from labrig_surrogates.parameters import ArrayParameters, ChipParameters, ConverterRange, Estimate
    from labrig_surrogates.recurrent import AnalogCell, AnalogRecurrent
    from labrig_surrogates.stochastic_residual import StochasticResidual, evaluate_samples
    from labrig_surrogates.stuck_cells import StuckCells
    from labrig_surrogates.tilemap import ArrayGeometry, TileMap
    from labrig_surrogates.wires import crossbar_currents, transfer_matrix
    from labrig_surrogates.wiring import Wiring
    from labrig_surrogates.wiring_effect import WiringEffect

__all__ = [
    "Adc",
    "Airbench",
    "AnalogCell",
    "AnalogConfig",
    "AnalogConv1d",
    "AnalogConv2d",
    "AnalogLayer",
    "AnalogLinear",
    "AnalogMultiheadAttention",
    "AnalogRecurrent",
    "ArrayGeometry",
    "ArrayParameters",
    "ArraySurrogate",
    "AsymmetricActivation",
    "Backend",
    "BoltzmannMachine",
    "CellMismatch",
    "CellTrace",
    "ChipParameters",
    "ColumnMismatch",
    "Compression",
    "ConverterRange",
    "Dac",
    "DenoisingNetwork",
    "DeviceEffect",
    "DigitalBackend",
    "EnergyModel",
    "EnergyReport",
    "Equilibrium",
    "EquilibriumPropagation",
    "Estimate",
    "FittedActivation",
    "Flicker",
    "LayerLoad",
    "LossTerms",
    "MeasuredTransfer",
    "NoiseSpec",
    "NominalBackend",
    "OutputNoise",
    "OutputScale",
    "PhysicalRecurrence",
    "PhysicsInformedLoss",
    "ReadNoise",
    "Saturation",
    "ShotNoise",
    "StochasticResidual",
    "StretchedExponential",
    "StuckCells",
    "SurrogateBackend",
    "SurrogateError",
    "Telegraph",
    "ThermalNoise",
    "TileMap",
    "WeightNoise",
    "WeightQuantization",
    "Wiring",
    "WiringEffect",
    "analog_layers",
    "calibrate_input_ranges",
    "clip_weights",
    "compensate_drift",
    "crossbar_currents",
    "describe_model",
    "erase",
    "evaluate_samples",
    "hermes",
    "layer_loads",
    "load_chip",
    "new_chip",
    "new_write",
    "noise_off",
    "note_response",
    "output_sigma",
    "pcm_joshi",
    "pcm_like",
    "program",
    "record_statistics",
    "reram_cmo",
    "reram_milo",
    "reram_wan",
    "resnet18",
    "resnet20",
    "save_chip",
    "seed_noise",
    "set_age",
    "set_backend",
    "sonos",
    "to_analog",
    "to_digital",
    "transfer_matrix",
    "weight_sigma",
]

# Where each name lives: `module:name there`. The test of the public API holds this equal to the imports above.
_HOMES = {
    "Adc": "labrig_surrogates.effect_settings:Adc",
    "Airbench": "labrig_surrogates.models.airbench:Airbench",
    "AnalogCell": "labrig_surrogates.recurrent:AnalogCell",
    "AnalogConfig": "labrig_surrogates.analog_config:AnalogConfig",
    "AnalogConv1d": "labrig_surrogates.convolution:AnalogConv1d",
    "AnalogConv2d": "labrig_surrogates.convolution:AnalogConv2d",
    "AnalogLayer": "labrig_surrogates.layers:AnalogLayer",
    "AnalogLinear": "labrig_surrogates.layers:AnalogLinear",
    "AnalogMultiheadAttention": "labrig_surrogates.attention:AnalogMultiheadAttention",
    "AnalogRecurrent": "labrig_surrogates.recurrent:AnalogRecurrent",
    "ArrayGeometry": "labrig_surrogates.tilemap:ArrayGeometry",
    "ArrayParameters": "labrig_surrogates.parameters:ArrayParameters",
    "ArraySurrogate": "labrig_surrogates.array_surrogate:ArraySurrogate",
    "AsymmetricActivation": "labrig_surrogates.activations:AsymmetricActivation",
    "Backend": "labrig_surrogates.backend:Backend",
    "BoltzmannMachine": "labrig_surrogates.models.energy_based:BoltzmannMachine",
    "CellMismatch": "labrig_surrogates.mismatch:CellMismatch",
    "CellTrace": "labrig_surrogates.cell_traces:CellTrace",
    "ChipParameters": "labrig_surrogates.parameters:ChipParameters",
    "ColumnMismatch": "labrig_surrogates.mismatch:ColumnMismatch",
    "Compression": "labrig_surrogates.output_transfer:Compression",
    "ConverterRange": "labrig_surrogates.parameters:ConverterRange",
    "Dac": "labrig_surrogates.effect_settings:Dac",
    "DenoisingNetwork": "labrig_surrogates.models.diffusion:DenoisingNetwork",
    "DeviceEffect": "labrig_surrogates.device_effect:DeviceEffect",
    "DigitalBackend": "labrig_surrogates.backend:DigitalBackend",
    "EnergyModel": "labrig_surrogates.energy:EnergyModel",
    "EnergyReport": "labrig_surrogates.energy_report:EnergyReport",
    "Equilibrium": "labrig_surrogates.models.equilibrium:Equilibrium",
    "EquilibriumPropagation": "labrig_surrogates.models.equilibrium_propagation:EquilibriumPropagation",
    "Estimate": "labrig_surrogates.parameters:Estimate",
    "FittedActivation": "labrig_surrogates.activations:FittedActivation",
    "Flicker": "labrig_surrogates.noise_traces:Flicker",
    "LayerLoad": "labrig_surrogates.energy_report:LayerLoad",
    "LossTerms": "labrig_surrogates.losses:LossTerms",
    "MeasuredTransfer": "labrig_surrogates.output_transfer:MeasuredTransfer",
    "NoiseSpec": "labrig_surrogates.noise_levels:NoiseSpec",
    "NominalBackend": "labrig_surrogates.backend:NominalBackend",
    "OutputNoise": "labrig_surrogates.effect_settings:OutputNoise",
    "OutputScale": "labrig_surrogates.noise_levels:OutputScale",
    "PhysicalRecurrence": "labrig_surrogates.models.recurrent:PhysicalRecurrence",
    "PhysicsInformedLoss": "labrig_surrogates.losses:PhysicsInformedLoss",
    "ReadNoise": "labrig_surrogates.effect_settings:ReadNoise",
    "Saturation": "labrig_surrogates.effect_settings:Saturation",
    "ShotNoise": "labrig_surrogates.current_noise:ShotNoise",
    "StochasticResidual": "labrig_surrogates.stochastic_residual:StochasticResidual",
    "StretchedExponential": "labrig_surrogates.activations:StretchedExponential",
    "StuckCells": "labrig_surrogates.stuck_cells:StuckCells",
    "SurrogateBackend": "labrig_surrogates.backend:SurrogateBackend",
    "SurrogateError": "labrig_surrogates.errors:SurrogateError",
    "Telegraph": "labrig_surrogates.noise_traces:Telegraph",
    "ThermalNoise": "labrig_surrogates.current_noise:ThermalNoise",
    "TileMap": "labrig_surrogates.tilemap:TileMap",
    "WeightNoise": "labrig_surrogates.effect_settings:WeightNoise",
    "WeightQuantization": "labrig_surrogates.effect_settings:WeightQuantization",
    "Wiring": "labrig_surrogates.wiring:Wiring",
    "WiringEffect": "labrig_surrogates.wiring_effect:WiringEffect",
    "analog_layers": "labrig_surrogates.layers:analog_layers",
    "calibrate_input_ranges": "labrig_surrogates.calibrate_ranges:calibrate_ranges",
    "clip_weights": "labrig_surrogates.model_tools:clip_weights",
    "compensate_drift": "labrig_surrogates.drift_compensation:compensate_drift",
    "crossbar_currents": "labrig_surrogates.wires:crossbar_currents",
    "describe_model": "labrig_surrogates.describe:describe",
    "erase": "labrig_surrogates.model_tools:erase",
    "evaluate_samples": "labrig_surrogates.stochastic_residual:evaluate_samples",
    "hermes": "labrig_surrogates.device_presets:hermes",
    "layer_loads": "labrig_surrogates.energy_loads:layer_loads",
    "load_chip": "labrig_surrogates.io:load_chip",
    "new_chip": "labrig_surrogates.model_tools:new_chip",
    "new_write": "labrig_surrogates.model_tools:new_write",
    "noise_off": "labrig_surrogates.model_tools:noise_off",
    "note_response": "labrig_surrogates.drift_compensation:note_response",
    "output_sigma": "labrig_surrogates.noise_levels:output_sigma",
    "pcm_joshi": "labrig_surrogates.device_presets:pcm_joshi",
    "pcm_like": "labrig_surrogates.device_presets:pcm_like",
    "program": "labrig_surrogates.model_tools:program",
    "record_statistics": "labrig_surrogates.activation_statistics:record_statistics",
    "reram_cmo": "labrig_surrogates.device_presets:reram_cmo",
    "reram_milo": "labrig_surrogates.device_presets:reram_milo",
    "reram_wan": "labrig_surrogates.device_presets:reram_wan",
    "resnet18": "labrig_surrogates.models.resnet:resnet18",
    "resnet20": "labrig_surrogates.models.resnet:resnet20",
    "save_chip": "labrig_surrogates.io:save_chip",
    "seed_noise": "labrig_surrogates.model_tools:seed_noise",
    "set_age": "labrig_surrogates.model_tools:set_age",
    "set_backend": "labrig_surrogates.layers:set_backend",
    "sonos": "labrig_surrogates.device_presets:sonos",
    "to_analog": "labrig_surrogates.convert:to_analog",
    "to_digital": "labrig_surrogates.convert:to_digital",
    "transfer_matrix": "labrig_surrogates.wires:transfer_matrix",
    "weight_sigma": "labrig_surrogates.noise_levels:weight_sigma",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _HOMES[name].partition(":")
    return getattr(import_module(module), there)


def __dir__() -> list[str]:
    return __all__
