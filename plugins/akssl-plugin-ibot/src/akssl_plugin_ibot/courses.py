"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "ibot": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((24.2, 23.2, 23.6), (27.7, 26.4, 24.6), (27.9, 27.2, 25.6), (26.7, 26.7, 25.1)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((16.7, 14.4, 15.0), (14.5, 15.7, 16.6), (15.5, 17.0, 16.7), (15.7, 16.9, 16.4)),
        ),
    ),
}
