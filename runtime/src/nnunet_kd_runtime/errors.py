"""Errors for people: one line that says what is wrong, where, and what to do next. The exit codes are nnunet-kd's."""

from __future__ import annotations


class SegmentationError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 2


class SettingsError(SegmentationError):
    """An option does not hold, or does not fit the model."""

    exit_code = 3


class MissingRequirement(SegmentationError):
    """Something outside the package is missing: an extra, memory, space or permission on the disk."""

    exit_code = 6


class DataError(SegmentationError):
    """An image does not hold, or nnU-Net could not predict it either."""

    exit_code = 7


class ModelError(SegmentationError):
    """The exported model is missing, damaged, or needs what this package does not have."""

    exit_code = 8
