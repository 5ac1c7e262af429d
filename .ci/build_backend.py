"""setuptools as the build backend; where it is missing, one sentence of setup.py's says what to type."""

import os
import sys

try:
    from setuptools.build_meta import *  # noqa: F403
except ImportError as error:
    from setup import refusal

    sys.exit(refusal(error, os.environ))
