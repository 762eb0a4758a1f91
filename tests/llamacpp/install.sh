#!/usr/bin/env bash
# install.sh PYTHON: llama-cpp-python for the tests, where a wheel or a C++ compiler is there.
#
# It is a source package. What is compiled here is ready in 2 CPU minutes (77 files instead of 193, hardly optimised),
# computes slower, and lacks what hasten does not use. So it goes into a folder of its own, where later checkouts find
# it, and not into pip's cache, where others would.
set -euo pipefail
python=$1
here=$(cd "$(dirname "$0")" && pwd)
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/hasten/wheels-for-tests
options=(--quiet --disable-pip-version-check --constraint "$here/../../constraints.txt")

"$python" -c 'import llama_cpp' 2>/dev/null && exit
mkdir -p "$wheels"
install() { "$python" -m pip install "${options[@]}" --only-binary llama-cpp-python --find-links "$wheels" llama-cpp-python; }
install 2>/dev/null && exit
compiler=${CXX:-c++}
if ! command -v "${compiler%% *}" >/dev/null; then
    echo "no C++ compiler: the llama.cpp backend will NOT be tested"
    exit
fi
echo "compiling llama.cpp for the tests, once for this machine; without it: make test LLAMACPP=no"
flags="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_LLAMAFILE=OFF -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1"
CMAKE_ARGS="$flags -DCMAKE_PROJECT_llama.cpp_INCLUDE=$here/core_only.cmake" \
    "$python" -m pip wheel "${options[@]}" --no-deps --no-cache-dir --wheel-dir "$wheels" llama-cpp-python
install
