"""What the chapters call and do not show: interactive figures.

Chapters import it by name: it is found from the repository's root and from notebooks/ alike.
"""
