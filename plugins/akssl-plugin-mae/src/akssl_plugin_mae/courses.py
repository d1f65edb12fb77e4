"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "mae": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((11.9, 12.3, 11.1), (13.4, 16.1, 12.9), (19.3, 16.5, 16.9), (19.4, 18.0, 17.4)),
        ),
    ),
}
