"""What a run is computed on: the device, what else the machine does, and where the numbers of a record come from."""

from .devices import (
    compiled,
    device,
    device_name,
    device_type,
    has_bf16,
    import_compiler,
    precision,
    prepare_process,
)
from .memory import total as memory
from .origin import provenance
from .others import watch_others

__all__ = [
    "compiled",
    "device",
    "device_name",
    "device_type",
    "has_bf16",
    "import_compiler",
    "memory",
    "precision",
    "prepare_process",
    "provenance",
    "watch_others",
]
