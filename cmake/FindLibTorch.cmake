# Finds LibTorch by its libraries and headers alone. The package's own TorchConfig.cmake wants a CUDA toolkit on the
# machine even to link its CPU half.
#
# Looks in LIBTORCH (CMake or environment variable: the folder that holds lib/ and include/), Torch_DIR (its
# share/cmake/Torch), and the folder that scripts/fetch-libtorch fills.
# Defines LibTorch::CPU, LibTorch::CUDA where the CUDA half is there, and LibTorch::C10CUDA, the part of that half that
# knows streams, with the CUDA runtime's headers, where those lie beside it as in the wheels.
set(_roots ${LIBTORCH} $ENV{LIBTORCH})
if(Torch_DIR)
  list(APPEND _roots ${Torch_DIR}/../../..)
endif()
list(APPEND _roots ${PROJECT_SOURCE_DIR}/third_party/libtorch/torch)

find_path(LIBTORCH_INCLUDE_DIR ATen/ATen.h PATHS ${_roots} PATH_SUFFIXES include NO_DEFAULT_PATH)
find_library(LIBTORCH_CPU_LIBRARY torch_cpu PATHS ${_roots} PATH_SUFFIXES lib NO_DEFAULT_PATH)
find_library(LIBTORCH_C10_LIBRARY c10 PATHS ${_roots} PATH_SUFFIXES lib NO_DEFAULT_PATH)
# The OpenMP runtime that LibTorch computes with: one process should have one team of threads.
find_library(LIBTORCH_OPENMP_LIBRARY NAMES libgomp.so.1 PATHS ${_roots} PATH_SUFFIXES lib)
find_library(LIBTORCH_CUDA_LIBRARY torch_cuda PATHS ${_roots} PATH_SUFFIXES lib NO_DEFAULT_PATH)
find_library(LIBTORCH_C10_CUDA_LIBRARY c10_cuda PATHS ${_roots} PATH_SUFFIXES lib NO_DEFAULT_PATH)
# Those of CUDA's libraries, which headers of the CUDA half include: a toolkit has them, an nvcc of wheels has not.
find_path(LIBTORCH_CUDA_INCLUDE_DIR cusparse.h
          PATHS ${_roots} PATH_SUFFIXES ../nvidia/cu13/include NO_DEFAULT_PATH)
# (The runtime's headers include these, of another wheel.)
find_path(LIBTORCH_CUDART_INCLUDE_DIR crt/host_defines.h
          PATHS ${_roots} PATH_SUFFIXES ../nvidia/cu13/include NO_DEFAULT_PATH)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch REQUIRED_VARS LIBTORCH_CPU_LIBRARY LIBTORCH_C10_LIBRARY LIBTORCH_OPENMP_LIBRARY
                         LIBTORCH_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "set LIBTORCH to a LibTorch 2.13 folder, for example what scripts/fetch-libtorch prints")

if(LibTorch_FOUND AND NOT TARGET LibTorch::CPU)
  add_library(LibTorch::CPU INTERFACE IMPORTED)
  # Last in the search order: the folder carries an old copy of google/protobuf.
  set(_headers "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter \"${LIBTORCH_INCLUDE_DIR}\">")
  target_compile_options(LibTorch::CPU INTERFACE ${_headers})
  # libtorch_cpu needs the two CUDA runtime libraries only when it runs; they lie where its own run path looks.
  target_link_options(LibTorch::CPU INTERFACE -Wl,--allow-shlib-undefined)
  target_link_libraries(LibTorch::CPU INTERFACE ${LIBTORCH_CPU_LIBRARY} ${LIBTORCH_C10_LIBRARY}
                                                -l:libgomp.so.1)
  get_filename_component(_openmp_directory ${LIBTORCH_OPENMP_LIBRARY} DIRECTORY)
  target_link_directories(LibTorch::CPU INTERFACE ${_openmp_directory})
  if(LIBTORCH_CUDA_LIBRARY AND LIBTORCH_C10_CUDA_LIBRARY)
    add_library(LibTorch::CUDA INTERFACE IMPORTED)
    target_link_libraries(LibTorch::CUDA INTERFACE ${LIBTORCH_CUDA_LIBRARY} ${LIBTORCH_C10_CUDA_LIBRARY} LibTorch::CPU)
    if(LIBTORCH_CUDA_INCLUDE_DIR)  # Behind a toolkit's own.
      target_compile_options(LibTorch::CUDA INTERFACE
        "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter \"${LIBTORCH_CUDA_INCLUDE_DIR}\">")
    endif()
  endif()
  if(LIBTORCH_C10_CUDA_LIBRARY AND LIBTORCH_CUDART_INCLUDE_DIR)
    add_library(LibTorch::C10CUDA INTERFACE IMPORTED)
    target_compile_options(LibTorch::C10CUDA INTERFACE ${_headers})
    target_include_directories(LibTorch::C10CUDA SYSTEM INTERFACE ${LIBTORCH_CUDART_INCLUDE_DIR})
    target_link_libraries(LibTorch::C10CUDA INTERFACE ${LIBTORCH_C10_CUDA_LIBRARY} ${LIBTORCH_C10_LIBRARY})
  endif()
endif()
