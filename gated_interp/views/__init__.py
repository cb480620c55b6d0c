"""What one model is shown by: each file is a view, which turns a subject into tables and figures.

The commands ``verdict``, ``ablate`` and ``circuits``, the gallery of a run and the report all draw
these views. A new one is one file here with ``VIEW = View(topic, show)``.
"""
