"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "mae": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((24.8, 23.7, 21.8), (29.5, 27.8, 26.6), (31.7, 28.0, 26.5), (30.9, 28.3, 26.9)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((12.0, 11.8, 11.3), (14.0, 16.3, 13.0), (19.1, 16.3, 16.5), (19.3, 17.3, 17.0)),
        ),
    ),
}
