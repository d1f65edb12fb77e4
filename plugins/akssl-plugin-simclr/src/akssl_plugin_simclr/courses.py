"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "simclr": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((37.3, 33.4, 35.4), (39.2, 37.7, 36.2), (38.8, 39.4, 38.9), (40.1, 40.1, 38.9)),
        ),
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
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((37.4, 37.5, 33.9), (36.9, 38.6, 38.0), (40.7, 38.9, 37.8), (39.7, 38.4, 38.5)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((51.0, 49.8, 48.3), (61.5, 61.2, 59.8), (76.2, 70.2, 69.1), (81.0, 72.8, 76.0)),
        ),
    ),
}
