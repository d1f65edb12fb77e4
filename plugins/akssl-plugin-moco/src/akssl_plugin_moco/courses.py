"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "mocov2": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((39.8, 41.3, 32.2), (47.2, 49.2, 39.8), (50.1, 51.3, 45.4), (51.6, 50.2, 45.9)),
        ),
    ),
    "mocov3": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((50.4, 55.3, 47.2), (53.5, 59.3, 53.5), (57.4, 64.0, 58.2), (58.6, 63.6, 58.9)),
        ),
    ),
}
