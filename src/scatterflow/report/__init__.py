"""The report of a run: one self-contained HTML page, its figures as files, and the metrics of all studies."""
