"""Networks that the studies train: plain torch modules, put on analog arrays by `to_analog` like any other."""

from labrig_surrogates.models.airbench import Airbench, AirbenchShape, principal_filters
from labrig_surrogates.models.resnet import ResNet, ResNetShape, resnet18, resnet20

__all__ = ["Airbench", "AirbenchShape", "ResNet", "ResNetShape", "principal_filters", "resnet18", "resnet20"]
