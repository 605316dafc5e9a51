"""What a run is computed on: the device, what else the machine does, and where the numbers of a record come from."""

from .devices import (
    compiled,
    compute_exactly,
    device,
    device_name,
    device_type,
    has_bf16,
    import_compiler,
    keep_freed_memory,
    precision,
)
from .memory import total as memory
from .origin import provenance
from .others import watch_others

__all__ = [
    "compiled",
    "compute_exactly",
    "device",
    "device_name",
    "device_type",
    "has_bf16",
    "import_compiler",
    "keep_freed_memory",
    "memory",
    "precision",
    "provenance",
    "watch_others",
]
