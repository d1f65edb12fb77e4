"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "simsiam": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((45.0, 34.4, 37.4), (61.4, 47.7, 50.5), (61.8, 50.6, 55.7), (62.1, 52.2, 56.8)),
        ),
    ),
}
