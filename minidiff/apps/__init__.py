"""Whole methods on top of the core: imputation and forecasting of series.

Each holds a net, a map from a batch to ``(x0, known, cond)``, what the prediction means, and the
method's own loss terms. There is no schedule, no posterior and no loop over diffusion steps here.
"""

from . import csdi, heads, recurrent, targets, timegrad, weather

__all__ = ["csdi", "heads", "recurrent", "targets", "timegrad", "weather"]
