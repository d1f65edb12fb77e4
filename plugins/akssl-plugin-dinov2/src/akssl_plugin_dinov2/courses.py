"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "dinov2": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((29.0, 30.3, 26.9), (28.9, 27.9, 28.5), (31.8, 30.1, 27.9), (30.6, 29.6, 27.9)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((18.7, 30.9, 25.7), (41.2, 41.8, 41.0), (47.6, 50.2, 49.3), (49.9, 53.8, 54.0)),
        ),
    ),
}
