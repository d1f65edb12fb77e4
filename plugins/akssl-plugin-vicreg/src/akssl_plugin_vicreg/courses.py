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
            knn_top1=((54.9, 52.0, 49.1), (59.8, 58.8, 59.9), (66.4, 64.2, 60.8), (65.6, 66.8, 62.2)),
        ),
        Course(
            data="2,000 images of shapes",
            sample="fdbb389efe30aa36b05170d54a2ffb3f",
            knn_top1=((34.2, 25.1, 37.5), (40.4, 34.5, 44.8)),
        ),
    ),
}
