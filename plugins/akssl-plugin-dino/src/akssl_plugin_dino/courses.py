"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dino": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((25.3, 29.9, 28.7), (28.0, 27.9, 26.3), (26.5, 28.3, 27.7), (26.7, 27.7, 28.9)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((42.7, 37.1, 32.1), (57.6, 47.3, 38.4), (62.0, 55.4, 40.3), (63.2, 55.6, 41.3)),
        ),
    ),
}
