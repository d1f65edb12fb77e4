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
            knn_top1=((19.3, 30.0, 25.8), (39.6, 41.2, 38.5), (48.5, 46.5, 48.8), (51.9, 50.5, 50.2)),
        ),
    ),
}
