"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dino": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((42.7, 37.1, 32.1), (50.9, 40.8, 33.3), (58.9, 41.5, 33.7), (58.2, 39.6, 33.1)),
        ),
    ),
}
