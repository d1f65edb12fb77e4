"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "lejepa": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((32.9, 34.6, 34.8), (38.6, 36.4, 36.7), (38.7, 38.0, 38.0), (39.5, 36.9, 37.9)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((61.1, 56.3, 56.8), (72.5, 65.2, 65.1), (76.9, 73.5, 74.9), (78.7, 73.7, 76.3)),
        ),
    ),
}
