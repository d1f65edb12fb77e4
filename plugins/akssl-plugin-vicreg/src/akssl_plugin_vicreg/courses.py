"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "vicreg": (
        Course(
            data="10,000 images of cifar-10",
            sample="8d1a9a850ab78298dc0c2b5d38ebb9b2",
            knn_top1=((32.3, 31.8, 31.7), (33.6, 34.5, 34.7), (36.4, 37.9, 36.0), (37.4, 37.1, 35.3)),
        ),
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((54.0, 55.4, 56.9), (62.9, 53.5, 60.5), (64.5, 65.3, 63.0), (64.4, 65.5, 65.6)),
        ),
        Course(
            data="2,000 images of shapes",
            sample="fdbb389efe30aa36b05170d54a2ffb3f",
            knn_top1=((33.4, 27.3, 30.7), (43.1, 38.6, 35.8)),
        ),
    ),
}
