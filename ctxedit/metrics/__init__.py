"""How good an edit is: metrics of clips, open to plugins.

:mod:`~ctxedit.metrics.registry` says what a metric is and how to add one; ``scores`` holds those that come
with ctxedit, one family a file, over the pure functions in :mod:`~ctxedit.metrics.formulas`,
:mod:`~ctxedit.metrics.flow` and :mod:`~ctxedit.metrics.structure`. ``images`` compares whole sets of images.
"""

from ctxedit.metrics.edit import Edit, Metric
from ctxedit.metrics.networks import Networks
from ctxedit.metrics.registry import metric, metrics

__all__ = ["Edit", "Metric", "Networks", "metric", "metrics"]
