"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "nnclr": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((50.2, 37.5, 38.4), (57.6, 54.5, 55.8), (73.6, 65.4, 71.3), (77.5, 67.1, 72.1)),
        ),
    ),
}
