# Decides whether the CUDA kernels are built, and says so in one line. LONGSEQ_CUDA: AUTO (when nvcc works), 1, 0;
# a CMake variable or an environment variable. Sets LONGSEQ_HAVE_CUDA.
if(NOT DEFINED LONGSEQ_CUDA AND DEFINED ENV{LONGSEQ_CUDA})
  set(LONGSEQ_CUDA "$ENV{LONGSEQ_CUDA}")
endif()
if(NOT DEFINED LONGSEQ_CUDA OR LONGSEQ_CUDA STREQUAL "")
  set(LONGSEQ_CUDA AUTO)
endif()

set(LONGSEQ_HAVE_CUDA OFF)
if(NOT LONGSEQ_CUDA STREQUAL "AUTO" AND NOT LONGSEQ_CUDA)
  message(STATUS "longseq: CUDA kernels: NO (LONGSEQ_CUDA=${LONGSEQ_CUDA}), CPU-only build")
  return()
endif()
if(NOT cuda)
  message(STATUS "longseq: CUDA kernels: NO, CPU-only build (this version has no .cu file)")
  return()
endif()

include(CheckLanguage)
if(CMAKE_CUDA_COMPILER STREQUAL "NOTFOUND") # of an earlier run: look again, nvcc may have come since
  unset(CMAKE_CUDA_COMPILER CACHE)
endif()
find_program(LONGSEQ_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda)
if(LONGSEQ_NVCC AND NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} "${LONGSEQ_NVCC}") # CMAKE_CUDA_COMPILER would skip check_language's trial compile
endif()
# Before the language is enabled: otherwise CMake tries the compiler with nvcc's default architecture.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-virtual)
endif()
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED) # the runtime library, linked in
  set(LONGSEQ_HAVE_CUDA ON)
  message(STATUS "longseq: CUDA kernels: YES (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${CMAKE_CUDA_COMPILER})")
  return()
endif()

set(why "nvcc not found: put it on PATH or set CUDA_HOME or CUDACXX")
if(DEFINED ENV{CUDACXX})
  set(why "'$ENV{CUDACXX}' was found but cannot compile: see ${CMAKE_BINARY_DIR}/CMakeFiles")
endif()
if(NOT LONGSEQ_CUDA STREQUAL "AUTO")
  message(FATAL_ERROR "longseq: LONGSEQ_CUDA=${LONGSEQ_CUDA}, but ${why}")
endif()
message(STATUS "longseq: CUDA kernels: NO, CPU-only build (${why})")
