"""The processes that nnU-Net starts for several GPUs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from torch.multiprocessing.spawn import ProcessRaisedException

from nnunet_kd import errors

_RAISED = re.compile(r"^nnunet_kd\.errors\.(\w+): (.*)\Z", re.MULTILINE | re.DOTALL)
"""The end of a traceback as text, of an error of ours."""


@contextlib.contextmanager
def errors_of_processes() -> Iterator[None]:
    """Within, an error of ours that a process started by PyTorch raised is raised here, too.

    PyTorch hands on its traceback as text, which ends with the name of its class and its message.
    """
    try:
        yield
    except ProcessRaisedException as error:
        found = _RAISED.search(str(error).rpartition("Traceback (most recent call last):")[2])  # the last of a chain
        kind = None if found is None else getattr(errors, found[1], None)
        if found is None or kind is None:
            raise
        raise kind(found[2].strip()) from error
