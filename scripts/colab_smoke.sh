#!/usr/bin/env bash
# Inside the image that Colab publishes: install minidiff as a lab's first cell does, hold Colab's
# torch to its version, and run every lab at PRESET=smoke in an empty folder, as a reader has it:
# one notebook and no checkout.
set -euo pipefail
course="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
cp -r "$course/minidiff" "$course/pyproject.toml" "$course/README.md" "$course/LICENSE" "$work/"
mkdir "$work/labs" "$work/empty"
cp "$course"/notebooks/*.py "$work/labs/"
cd "$work/empty"

python3 - > pins.txt <<'PY'
from importlib.metadata import version
for name in ("torch", "torchvision", "numpy"):
    print(f"{name}=={version(name)}")
PY
cat pins.txt
python3 -m pip install --quiet -c pins.txt "minidiff[labs,data] @ file://$work"
while IFS= read -r pin; do
  python3 -c 'import sys; from importlib.metadata import version; n, v = sys.argv[1].split("=="); assert version(n) == v, (n, v)' "$pin"
done < pins.txt

failed=0
for lab in "$work"/labs/*.py; do
  folder="$work/empty/$(basename "$lab" .py)"
  mkdir "$folder"
  echo "== $(basename "$lab")"
  (cd "$folder" && PRESET=smoke OMP_NUM_THREADS=1 MPLBACKEND=Agg python3 -m IPython --no-banner --colors=NoColor -- "$lab") || failed=1
done
exit $failed
