"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "mae": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((9.9, 12.9, 11.4), (14.8, 12.7, 12.5), (18.4, 18.0, 16.6), (18.3, 17.0, 17.3)),
        ),
    ),
}
