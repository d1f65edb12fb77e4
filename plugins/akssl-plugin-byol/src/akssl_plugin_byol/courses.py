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
            knn_top1=((46.7, 35.0, 31.2), (47.6, 40.2, 45.2), (53.2, 45.7, 46.1), (53.0, 46.3, 49.3)),
        ),
    ),
}
