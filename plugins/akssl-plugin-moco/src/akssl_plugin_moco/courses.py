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
            knn_top1=((39.8, 41.3, 32.2), (47.2, 49.2, 39.8), (50.1, 51.3, 45.4), (51.6, 50.2, 45.9)),
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
            knn_top1=((50.4, 55.3, 47.2), (53.5, 59.3, 53.5), (57.4, 64.0, 58.2), (58.6, 63.6, 58.9)),
        ),
    ),
}
