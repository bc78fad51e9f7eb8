# The GPU backend: built where a CUDA compiler is found, unless it is switched off.
set(RWKVX_CUDA AUTO CACHE STRING "Build for NVIDIA GPUs: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE RWKVX_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for these: Ampere, and Hopper with the instructions that are only its own. PTX of the first for all others.
set(RWKVX_CUDA_ARCHITECTURES "80;90a-real" CACHE STRING "GPU architectures, as CMAKE_CUDA_ARCHITECTURES takes them")

set(RWKVX_HAS_CUDA OFF)
if(RWKVX_SANITIZE)
  # Checked accesses do not exist on a GPU; the emulated kernels have them.
elseif(RWKVX_CUDA STREQUAL "OFF")
elseif(RWKVX_CUDA STREQUAL "ON")
  set(RWKVX_HAS_CUDA ON)
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(RWKVX_HAS_CUDA ON)
  endif()
endif()
if(RWKVX_HAS_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES ${RWKVX_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  enable_language(CUDA)
  # Packages that say -isystem /usr/include would put it before the compiler's own headers.
  list(APPEND CMAKE_CUDA_IMPLICIT_INCLUDE_DIRECTORIES ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25 does not know that nvcc has C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "GPU backend: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "GPU backend: left out (no nvcc, or switched off)")
endif()
