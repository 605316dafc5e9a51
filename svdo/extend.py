"""What a method, model, data set, task or optimizer of one's own is made of; ``svdo-run import=my.module`` finds it.

Each is one class with a decorator line, in a module of one's own::

    @model
    @dataclass
    class Mine(Model):
        name: str = "mine"
        width: int = 32

        def build(self, data: DataSpec) -> nn.Module: ...

From that line follow ``model=mine``, ``model.width=64`` with its type checked, help, sweeps and records.
"""

from .config import TrainConfig
from .data import Data, Dataset, DataSpec, Split, TensorSplit, dataset
from .errors import UserError, require
from .layers import Noise, NoisyLayer
from .methods import DropoutMethod, Method, method
from .models import Model, model
from .tasks import Headline, Task, task
from .train.optimizers import optimizer

__all__ = [
    "Data",
    "DataSpec",
    "Dataset",
    "DropoutMethod",
    "Headline",
    "Method",
    "Model",
    "Noise",
    "NoisyLayer",
    "Split",
    "Task",
    "TensorSplit",
    "TrainConfig",
    "UserError",
    "dataset",
    "method",
    "model",
    "optimizer",
    "require",
    "task",
]
