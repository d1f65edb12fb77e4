"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "byol": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((28.8, 27.4, 29.5), (29.2, 27.4, 29.8), (29.3, 27.7, 31.7), (29.3, 28.3, 31.9)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((46.1, 33.1, 32.0), (50.2, 37.1, 40.9), (54.2, 41.5, 47.6), (55.7, 42.8, 47.7)),
        ),
    ),
}
