"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "lejepa": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((52.0, 53.1, 53.6), (65.3, 64.0, 64.9), (72.1, 69.4, 70.8), (73.2, 69.6, 73.7)),
        ),
    ),
}
