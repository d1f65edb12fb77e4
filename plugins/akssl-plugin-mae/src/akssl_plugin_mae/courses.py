"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "mae": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((10.3, 12.9, 11.3), (14.2, 12.8, 12.2), (18.7, 19.2, 16.5), (16.7, 17.9, 16.4)),
        ),
    ),
}
