"""Preparation: from raw files to a folder of datasets, by one configuration."""

from .config import PrepareConfig
from .folder import Prepared
from .pipeline import prepare

__all__ = ["PrepareConfig", "Prepared", "prepare"]
