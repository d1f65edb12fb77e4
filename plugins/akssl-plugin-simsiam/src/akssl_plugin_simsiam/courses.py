"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "simsiam": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((45.3, 32.7, 41.7), (58.0, 43.7, 53.2), (59.1, 47.2, 56.2), (62.1, 48.8, 57.7)),
        ),
    ),
}
