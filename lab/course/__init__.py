"""The course: two exercises at the end of each notebook, checked with a hint, and graded for a whole class.

>>> lab.course.check("gal", 1, 0.01)         # right, or a hint that fits the mistake
>>> lab.course.grade("01_gal.ipynb")         # offline, from what the executed notebook holds

`lab course check FOLDER` does the latter for a folder of notebooks.
"""

from .checking import Verdict, check
from .grading import grade, graded

__all__ = ["Verdict", "check", "grade", "graded"]
