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
            knn_top1=((50.2, 37.5, 38.4), (57.6, 54.5, 55.8), (73.6, 65.4, 71.3), (77.5, 67.1, 72.1)),
        ),
    ),
}
