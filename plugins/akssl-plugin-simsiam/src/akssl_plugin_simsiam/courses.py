"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "simsiam": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((28.4, 27.0, 29.2), (29.7, 29.8, 31.0), (29.4, 31.4, 30.5), (31.0, 30.3, 31.0)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((45.0, 34.4, 37.4), (61.4, 47.7, 50.5), (61.8, 50.6, 55.7), (62.1, 52.2, 56.8)),
        ),
    ),
}
