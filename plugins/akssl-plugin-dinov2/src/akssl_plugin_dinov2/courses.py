"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dinov2": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((16.0, 17.2, 16.2), (25.9, 27.6, 26.3), (28.8, 31.0, 27.7), (29.4, 33.6, 28.7)),
        ),
    ),
}
