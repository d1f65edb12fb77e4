"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "mocov2": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((34.0, 32.6, 31.4), (36.5, 35.1, 33.8), (35.4, 34.7, 35.8), (37.0, 35.2, 36.2)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((39.7, 36.2, 35.4), (46.5, 45.7, 41.8), (49.3, 48.8, 48.6), (49.5, 50.5, 49.0)),
        ),
    ),
    "mocov3": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((31.5, 31.2, 30.6), (32.4, 35.4, 34.0), (35.8, 36.8, 35.9), (35.5, 36.7, 37.1)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((47.8, 52.7, 45.9), (54.6, 58.7, 52.4), (58.3, 63.5, 56.9), (58.7, 63.6, 56.3)),
        ),
    ),
}
