"""Classify images with an artifact: python classify.py ARTIFACT IMAGE..."""

import sys

import tcompile

#: The outputs that this program is written for; an artifact without them is refused.
NEEDED: tuple[str, ...] = ()


def main(artifact: str, *images: str) -> None:
    """Print the best classes of each image."""
    with tcompile.load(artifact) as model:
        model.require(NEEDED)
        for path, classes in zip(images, model(images).top(3), strict=True):
            print(path)
            for best in classes:
                print(f"  {best.probability:6.1%}  {best.label or f'class {best.index}'}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except tcompile.TcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
