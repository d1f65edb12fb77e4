"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "nnclr": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((49.8, 42.2, 37.3), (60.2, 55.8, 56.1), (70.2, 57.9, 65.5), (75.7, 62.0, 69.3)),
        ),
    ),
}
