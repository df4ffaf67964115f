#!/usr/bin/env bash
# Install the pinned CPU environment and this checkout into the environment of the given python.
# usage: requirements/install.sh path/to/python [runtime]      runtime: for images, without tools and checkout
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: requirements/install.sh path/to/python}
pip=("$python" -m pip --disable-pip-version-check --no-input install --no-deps)

# torch comes first and by its local version, because plain `torch` on PyPI is a CUDA build whose
# libraries --no-deps would leave out. A configured index or wheel folder may hold the CPU build;
# otherwise it is on PyTorch's own CPU index.
torch="$(grep '^torch==' requirements/cpu.txt)+cpu"
"${pip[@]}" "$torch" || "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"

if [ "${2:-}" = runtime ]; then
  "${pip[@]}" --no-cache-dir -r requirements/cpu.txt
  exit
fi
"${pip[@]}" -r requirements/cpu.txt -r requirements/dev.txt

# setuptools is pinned above, so the build needs nothing more from the network.
"${pip[@]}" --no-build-isolation --editable .
