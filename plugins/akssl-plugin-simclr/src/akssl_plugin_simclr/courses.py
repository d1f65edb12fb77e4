"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "simclr": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((47.9, 47.2, 49.9), (67.6, 61.6, 63.2), (77.3, 73.8, 76.3), (81.1, 76.7, 78.4)),
        ),
        Course(
            data="2,000 images of shapes",
            sample="fdbb389efe30aa36b05170d54a2ffb3f",
            knn_top1=((29.4, 28.2, 25.0), (36.1, 36.5, 31.6)),
        ),
    ),
    "simclrv2": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((51.0, 49.8, 48.3), (61.5, 61.2, 59.8), (76.2, 70.2, 69.1), (81.0, 72.8, 76.0)),
        ),
    ),
}
