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
            knn_top1=((52.9, 45.9, 52.3), (66.6, 56.5, 65.8), (77.2, 63.6, 77.1), (81.4, 67.8, 80.5)),
        ),
        Course(
            data="2,000 images of shapes",
            sample="fdbb389efe30aa36b05170d54a2ffb3f",
            knn_top1=((31.3, 28.6, 26.4), (39.2, 34.3, 32.3)),
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
            knn_top1=((48.6, 45.3, 46.2), (59.2, 60.4, 58.1), (73.6, 67.8, 72.1), (77.7, 70.5, 74.9)),
        ),
    ),
}
