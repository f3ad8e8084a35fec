"""How far pictures and videos are from each other: measures, pairs of files, live pairs, sheets and plots.

``dit-cache compare`` prints what is here; ``dit-cache demo`` and ``dit-cache tune`` measure with it.
"""
