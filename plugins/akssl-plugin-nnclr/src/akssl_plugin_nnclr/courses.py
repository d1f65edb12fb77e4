"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "nnclr": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((30.7, 27.9, 32.3), (32.9, 33.8, 33.5), (35.0, 32.7, 34.2), (35.4, 33.7, 34.6)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((49.8, 42.2, 37.3), (60.2, 55.8, 56.1), (70.2, 57.9, 65.5), (75.7, 62.0, 69.3)),
        ),
    ),
}
