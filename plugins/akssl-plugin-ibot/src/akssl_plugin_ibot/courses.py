"""How far runs of the recipe "default" came: written by benchmarks/courses.py."""

from akssl_core import Course

COURSES = {
    "ibot": (
        Course(
            data="10,000 images of shapes",
            sample="7a5e3693539ee84bcd73d251d7f1a4a6",
            knn_top1=((12.6, 13.4, 12.1), (18.3, 17.7, 17.0), (21.2, 21.2, 18.8), (23.9, 22.3, 19.5)),
        ),
    ),
}
