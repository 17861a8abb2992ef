"""Training models: `fit`, `evaluate`, and the `Trainer` behind them, which can be stopped and resumed.

Everything random in a run (order of the examples, dropout, jitter, masking) is a function of its seed, of the updates
that the optimiser has made, and of the place of a batch in its update. So a run that was stopped and resumed gives the
same weights, bit for bit, as one that was not, and so do two runs of one epoch in the place of one run of two.
"""

from sparse_mixer.training.callbacks import Callback, CSVLogger, EarlyStopping, JSONLLogger, ProgressBar
from sparse_mixer.training.evaluation import evaluate
from sparse_mixer.training.fitting import fit
from sparse_mixer.training.history import History
from sparse_mixer.training.metrics import Metrics
from sparse_mixer.training.printing import EpochLines, has_progress_bar
from sparse_mixer.training.trainable import Trainable
from sparse_mixer.training.trainer import Trainer

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "EpochLines",
    "History",
    "JSONLLogger",
    "Metrics",
    "ProgressBar",
    "Trainable",
    "Trainer",
    "evaluate",
    "fit",
    "has_progress_bar",
]
