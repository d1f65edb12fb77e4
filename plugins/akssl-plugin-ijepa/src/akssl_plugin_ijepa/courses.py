"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "ijepa": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((23.1, 25.0, 24.4), (24.5, 25.6, 22.5), (24.5, 24.5, 23.7), (24.2, 24.7, 25.7)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((12.5, 10.7, 12.2), (10.2, 9.2, 10.9), (10.3, 11.0, 10.5), (10.0, 10.8, 10.6)),
        ),
    ),
}
