"""`python -m graft`: the command where its folder is not on the path."""

from graft.cli import run

if __name__ == "__main__":
    run()
