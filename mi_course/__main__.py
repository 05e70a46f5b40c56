"""`python -m mi_course` is the same as the command `mi-course`."""

from mi_course.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
