"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "barlowtwins": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((33.6, 30.9, 33.7), (35.6, 34.5, 34.9), (36.4, 36.2, 35.3), (36.1, 37.3, 35.2)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((42.1, 39.5, 28.6), (49.8, 50.8, 47.0), (57.2, 56.8, 51.9), (57.5, 58.6, 53.3)),
        ),
    ),
}
