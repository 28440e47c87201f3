"""How plots look: one set of colours and lines for the report's small plots and for the calibrations' images."""

from typing import Any

import matplotlib

matplotlib.use("Agg")

INK, GREY = "#333333", "#8a8a8a"
# Okabe and Ito's colours, told apart by colour-blind readers; shapes differ as well.
FIRST, SECOND = ("#0072B2", "o", "-"), ("#D55E00", "s", "--")  # colour, marker, line: the judge, the held-out judge
RIGHT, WRONG = "#009E73", "#D55E00"  # what is true, what is false
STYLE: Any = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "t2i-feedback",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
}
