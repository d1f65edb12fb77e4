"""Measures of an encoder: features, accuracies of classifiers on them, and whether they have collapsed.

The encoder never trains here: classifiers see features that were computed once.
"""
