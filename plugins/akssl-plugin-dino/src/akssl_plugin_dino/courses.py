"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dino": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((42.4, 39.8, 30.4), (54.4, 48.6, 33.3), (58.3, 49.7, 33.9), (56.9, 50.3, 34.5)),
        ),
    ),
}
