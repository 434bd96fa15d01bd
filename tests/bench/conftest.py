import sys
from pathlib import Path

# `bench` is a folder of the repository and belongs to no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
