"""Errors for people: each says what is wrong, where, and what to do next.

The command line prints the message alone, without a traceback, and exits with ``exit_code``. Inside ``nnUNetv2_train`` they
arrive as ordinary exceptions, the message last.

The classes are the table of exit codes, the same in every command (docs/troubleshooting.md): what was typed is 3, even where it
names files; what is missing on the machine, space and permissions too, is 6; what is wrong with files has the code of what they
hold. Codes without a class: 0, 1 also for a traceback or failed runs of a sweep, 2 for a command line that cannot be parsed.
"""

from __future__ import annotations

INTERRUPTED = 130
"""A shell's exit code after Ctrl-C."""


class NnunetKdError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 2


class RunFailed(NnunetKdError):
    """A program that was started ended with an error: a step of the demonstration, a run of a sweep on a cluster."""

    exit_code = 1


class NnunetKdWarning(UserWarning):
    """What a user must know although the work goes on; the command line prints the message alone."""


class SettingsError(NnunetKdError):
    """A settings file, recipe, ``--set`` or another option does not hold, or options do not go together."""

    exit_code = 3


class PlanError(NnunetKdError):
    """A plan cannot be read or reduced."""

    exit_code = 4


class TeacherError(NnunetKdError):
    """The teacher is missing, damaged, or does not fit the student."""

    exit_code = 5


class MissingRequirement(NnunetKdError):
    """Something outside the package is missing: a variable, a folder, an extra, memory, disk space, a permission."""

    exit_code = 6


class DataError(NnunetKdError):
    """Images, labels or dataset files do not hold."""

    exit_code = 7


class ModelError(NnunetKdError):
    """A trained or exported model is missing, damaged, or not what was asked for."""

    exit_code = 8


class CheckpointError(NnunetKdError):
    """A checkpoint is damaged, or asks for more than data when it is loaded."""

    exit_code = 9


class TrainingStopped(NnunetKdError):
    """A training cannot go on; what it had reached is saved."""

    exit_code = 10
