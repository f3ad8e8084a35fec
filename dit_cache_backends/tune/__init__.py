"""Finding a backend and its options for a speed-up or a quality, on the user's own model and prompts.

``dit-cache tune`` writes what is found here to a file for ``--cache-config``, with a plot and a report.
"""
