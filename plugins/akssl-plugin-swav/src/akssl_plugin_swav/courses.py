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
            knn_top1=((49.8, 51.3, 47.8), (54.7, 58.5, 48.6), (61.5, 64.4, 60.0), (67.4, 62.5, 61.6)),
        ),
    ),
}
