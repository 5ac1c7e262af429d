"""`python -m fused_bn`: the doctor."""

import argparse
import sys

from fused_bn import _doctor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_bn", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("doctor", help="what is built, what works here, and what to do (the default)")
    parser.parse_args()
    return _doctor.main()


if __name__ == "__main__":
    sys.exit(main())
