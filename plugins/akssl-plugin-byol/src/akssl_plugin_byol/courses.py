"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "byol": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((46.1, 33.1, 32.0), (50.2, 37.1, 40.9), (54.2, 41.5, 47.6), (55.7, 42.8, 47.7)),
        ),
    ),
}
