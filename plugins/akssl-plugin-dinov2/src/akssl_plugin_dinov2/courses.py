"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dinov2": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((16.7, 17.2, 16.9), (24.1, 27.3, 25.5), (27.4, 30.6, 27.0), (27.6, 31.5, 28.2)),
        ),
    ),
}
