"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "lejepa": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((32.9, 32.6, 34.0), (37.4, 35.6, 36.1), (38.4, 35.2, 36.1), (38.2, 37.1, 35.7)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((51.3, 53.6, 53.3), (63.9, 62.1, 65.9), (70.7, 69.2, 70.2), (72.1, 71.4, 72.6)),
        ),
    ),
}
