"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dinov2": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((19.3, 30.0, 25.8), (39.6, 41.2, 38.5), (48.5, 46.5, 48.8), (51.9, 50.5, 50.2)),
        ),
    ),
}
