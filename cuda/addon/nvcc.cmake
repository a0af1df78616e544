# Decides whether the CUDA kernels are built, and says so in one line. LONGSEQ_CUDA: AUTO (when nvcc works), 1, 0;
# a CMake variable or an environment variable. Sets LONGSEQ_HAVE_CUDA, LONGSEQ_CUDA_ARCHITECTURES, and the options
# LONGSEQ_CUDA_CODE_<suffix> (where no architectures are named) and LONGSEQ_CUDA_PACKING.
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
  # What the kernels are compiled for: all (the prebuilt binary), else this machine's GPUs, else the portable code that
  # the driver compiles at first use, since machine code for all takes minutes. Or a list, as CMake writes it.
  if(NOT DEFINED LONGSEQ_CUDA_ARCHITECTURES)
    set(LONGSEQ_CUDA_ARCHITECTURES "$ENV{LONGSEQ_CUDA_ARCHITECTURES}")
  endif()
  if(LONGSEQ_CUDA_ARCHITECTURES STREQUAL "")
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE found
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed EQUAL 0 OR NOT found MATCHES "^[0-9]")
      set(LONGSEQ_CUDA_ARCHITECTURES 80-virtual)
    else()
      string(REGEX REPLACE "[.]([0-9]+)" "\\1-real" found "${found}")
      string(REPLACE "\n" ";" LONGSEQ_CUDA_ARCHITECTURES "${found}")
      list(REMOVE_DUPLICATES LONGSEQ_CUDA_ARCHITECTURES)
    endif()
  endif()
  set(LONGSEQ_CUDA_PACKING -lineinfo -Xfatbin=-compress-all)
  message(STATUS "longseq: CUDA architectures: ${LONGSEQ_CUDA_ARCHITECTURES}")
  if(LONGSEQ_CUDA_ARCHITECTURES STREQUAL "all")
    # Attention's kernels in machine code of their own for each of 8.x, the others, which memory bounds, in 8.0's, which
    # runs on all of them. What comes after 9.0 compiles its portable code. For users: as small as it can be, without a
    # profiler's lines.
    set(LONGSEQ_CUDA_ARCHITECTURES OFF)
    set(later "--generate-code=arch=compute_90,code=[sm_90,compute_90]")
    set(LONGSEQ_CUDA_CODE_cuda "--generate-code=arch=compute_80,code=sm_80" ${later})
    set(LONGSEQ_CUDA_CODE_sm80 -DLONGSEQ_CODE_FOR_86 "--generate-code=arch=compute_80,code=sm_80"
      "--generate-code=arch=compute_86,code=[sm_86,sm_89]" ${later})
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
      set(LONGSEQ_CUDA_PACKING --compress-mode=size)
    endif()
  endif()
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
