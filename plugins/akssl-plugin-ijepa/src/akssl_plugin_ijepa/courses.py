"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "ijepa": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((14.9, 13.6, 14.0), (13.9, 13.7, 12.8), (12.8, 12.3, 11.9), (11.9, 13.4, 12.1)),
        ),
    ),
}
