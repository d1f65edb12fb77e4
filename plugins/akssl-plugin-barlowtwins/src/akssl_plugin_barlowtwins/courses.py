"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "barlowtwins": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((42.1, 39.5, 28.6), (49.8, 50.8, 47.0), (57.2, 56.8, 51.9), (57.5, 58.6, 53.3)),
        ),
    ),
}
