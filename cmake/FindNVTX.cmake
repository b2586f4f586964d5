# Finds the headers of NVTX, by which profilers are told what happens when: beside LibTorch, as in the wheels, or in a CUDA
# toolkit. Defines NVTX::NVTX. To be called after find_package(LibTorch).
find_path(NVTX_INCLUDE_DIR nvtx3/nvToolsExt.h
          HINTS ${LIBTORCH_INCLUDE_DIR}/../../nvidia/cu13/include
          PATHS ${LIBTORCH_INCLUDE_DIR} /usr/local/cuda/include)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  NVTX REQUIRED_VARS NVTX_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "set NVTX_INCLUDE_DIR to a folder that holds nvtx3/nvToolsExt.h, as of PyPI's nvidia-nvtx")

if(NVTX_FOUND AND NOT TARGET NVTX::NVTX)
  add_library(NVTX::NVTX INTERFACE IMPORTED)
  target_include_directories(NVTX::NVTX SYSTEM INTERFACE ${NVTX_INCLUDE_DIR})
  target_link_libraries(NVTX::NVTX INTERFACE ${CMAKE_DL_LIBS})
endif()
