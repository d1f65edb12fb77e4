"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "swav": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((29.4, 30.2, 28.3), (31.9, 32.9, 25.5), (35.1, 33.9, 28.2), (36.0, 33.6, 31.1)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((49.7, 50.1, 43.0), (57.2, 59.6, 49.1), (64.6, 63.6, 58.4), (67.0, 65.6, 61.2)),
        ),
    ),
}
