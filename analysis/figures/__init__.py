"""The figures: each a pure function of tables, as wide as a paper's column, in one visual language.

In a notebook, from records to a figure:

    from analysis import figures, frames

    frame, errors = frames.load("runs")
    figures.time_to_accuracy(frame)
"""

from analysis.figures.axes import save
from analysis.figures.calibration import calibration
from analysis.figures.cost_split import cost_split
from analysis.figures.overfitting import overfitting
from analysis.figures.patience import patience
from analysis.figures.profile import profile
from analysis.figures.sensitivity import sensitivity
from analysis.figures.series import AXES
from analysis.figures.speedups import speedups
from analysis.figures.style import Style, Styles, styles
from analysis.figures.time_to_accuracy import time_to_accuracy
from analysis.figures.tuning_curve import tuning_curve

__all__ = [
    "AXES",
    "Style",
    "Styles",
    "calibration",
    "cost_split",
    "overfitting",
    "patience",
    "profile",
    "save",
    "sensitivity",
    "speedups",
    "styles",
    "time_to_accuracy",
    "tuning_curve",
]
