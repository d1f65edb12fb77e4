"""Did it help? A run's backbone beside raw pixels, itself untrained and other weights, with intervals.

Everything happens on copies: a run folder is left as it is, but for its `evaluation.json`, and for its verdict where
the method is judged by another protocol than the run's own k-NN.
"""
