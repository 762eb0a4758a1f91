# llama.cpp's common library is for its programs, and half of what there is to compile.
set(LLAMA_BUILD_COMMON OFF)
